"""Summarise files or standard input by map and reduce.

Each chunk is summed up by a child process, a few at a time; their sentences are grouped and summed
up again until they fit one prompt, and the last step writes the summary within a number of words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llmos.agents import forms
from llmos.agents.handle import OS
from llmos.agents.prompts import prompt
from llmos.agents.text import chunked, prose, read_all_input, read_lossy
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import RegexConstraint, Sampling
from llmos.syscalls.values import JsonObject

_CHUNK_TOKENS = 300
_PARALLEL = 8
_SAMPLING = Sampling(repetition_penalty=1.05, penalty_window_tokens=48)
_SENTENCE = forms.sentence(least=20, most=200)
_SENTENCE_TOKENS = 100


async def summarise(os: OS, *paths: str, words: int = 60, model: str | None = None) -> JsonObject:
    """Sum up files, or standard input when none is named, in at most `words` words.

    Returns `{"summary", "files", "chunks"}`; a file with bytes that are not UTF-8 is marked
    `is_lossy`, they are read as U+FFFD.
    Raises: SyscallError("invalid") when there is no text.
    """
    if words < 10:
        raise SyscallError("invalid", "words: give at least 10", field="words")
    named = {path: await read_lossy(os, path) for path in paths}
    files = named or {"-": await read_all_input(os)}
    chunks = [
        chunk.text
        for file in files.values()
        for chunk in await chunked(os, prose(file.text), tokens=_CHUNK_TOKENS, model=model)
    ]
    if not chunks:
        raise SyscallError("invalid", "paths: there is no text in them", field="paths")
    partial = await _reduced(os, chunks, model)
    summary = await _final(os, partial, words, model)
    await os.print(summary)
    return {
        "summary": summary,
        "files": [
            {"path": path, "bytes": len(file.data), "is_lossy": file.is_lossy}
            for path, file in files.items()
        ],
        "chunks": len(chunks),
    }


async def summarise_chunk(os: OS, text: str, *, model: str | None = None) -> str:
    """Sum up a text that fits a prompt in one sentence."""
    generated = await os.generate(
        prompt("summary").messages(text=text),
        model=model,
        sampling=_SAMPLING,
        constraint=RegexConstraint(pattern=_SENTENCE),
        max_tokens=_SENTENCE_TOKENS,
    )
    return generated.text


async def _reduced(os: OS, texts: Sequence[str], model: str | None) -> str:
    """Texts summed up until they fit one prompt."""
    while True:
        joined = "\n\n".join(texts)
        groups = await chunked(os, joined, tokens=_CHUNK_TOKENS, model=model)
        if len(groups) == 1:
            return groups[0].text
        texts = await _mapped(os, [group.text for group in groups], model)


async def _mapped(os: OS, texts: Sequence[str], model: str | None) -> list[str]:
    """Each text in one sentence, by children, `_PARALLEL` at once, in order."""
    slots = asyncio.Semaphore(_PARALLEL)

    async def one(text: str) -> str:
        async with slots:
            return str(await os.result(await os.spawn(summarise_chunk, text, model=model)))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(text)) for text in texts]
    return [task.result() for task in tasks]


async def _final(os: OS, text: str, words: int, model: str | None) -> str:
    generated = await os.generate(
        prompt("summary").messages(text=text),
        model=model,
        sampling=_SAMPLING,
        constraint=RegexConstraint(pattern=forms.words(most=words)),
        max_tokens=6 * words,
    )
    return generated.text
