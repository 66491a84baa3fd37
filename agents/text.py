"""Text as agents handle it: files as they are, chunks that fit a model, sentences.

Sizes in tokens are by the model's own tokenizer, asked through the kernel.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

from llmos.agents.handle import OS

_PARAGRAPH = re.compile(r"[^\n]+(?:\n(?!\s*\n)[^\n]+)*")
# A sentence ends at a mark that white space follows; "3.5" and "notes.txt" go on.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_MARKUP = re.compile(r"^\s*(?:#+|[-*>]|\d+\.)\s+|[`*_|]+", re.MULTILINE)
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_TABLE_ROW = re.compile(r"^\s*\|.*$", re.MULTILINE)


class FileText(NamedTuple):
    """A file's text; `is_lossy` when bytes that are not UTF-8 became U+FFFD."""

    text: str
    data: bytes
    is_lossy: bool


class Chunk(NamedTuple):
    """A piece of a text; `line` is where it starts, counted from 1."""

    text: str
    line: int
    tokens: int


async def read_lossy(os: OS, path: str) -> FileText:
    """A whole file, with a word on whether it could be read as UTF-8."""
    fd = await os.open(path)
    try:
        pieces: list[bytes] = []
        while True:
            data = await os.read(fd, max_bytes=1024 * 1024)
            pieces.append(data.data)
            if data.is_eof:
                break
    finally:
        await os.close(fd)
    return decode(b"".join(pieces))


async def read_all_input(os: OS) -> FileText:
    """All of standard input."""
    pieces: list[bytes] = []
    while True:
        data = await os.read(0)
        pieces.append(data.data)
        if data.is_eof:
            return decode(b"".join(pieces))


def decode(data: bytes) -> FileText:
    """Bytes as text, each undecodable one shown as U+FFFD."""
    try:
        return FileText(data.decode("utf-8"), data, is_lossy=False)
    except UnicodeDecodeError:
        return FileText(data.decode("utf-8", errors="replace"), data, is_lossy=True)


async def read_lines(os: OS) -> AsyncIterator[str]:
    """Lines of standard input as they come, without their ends."""
    rest = b""
    while True:
        data = await os.read(0)
        *lines, rest = (rest + data.data).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", errors="replace")
        if data.is_eof:
            if rest:
                yield rest.decode("utf-8", errors="replace")
            return


async def chunked(os: OS, text: str, *, tokens: int, model: str | None = None) -> list[Chunk]:
    """A text in pieces of at most `tokens` tokens, cut between paragraphs where possible.

    A paragraph that is too long is cut between sentences, and a sentence between words.
    """
    chunks: list[Chunk] = []
    pending: list[Chunk] = []
    async for piece in _pieces(os, text, tokens, model):
        if pending and sum(one.tokens for one in pending) + piece.tokens > tokens:
            chunks.append(_joined(pending))
            pending = []
        pending.append(piece)
    if pending:
        chunks.append(_joined(pending))
    return chunks


def sentences(text: str) -> list[str]:
    """The sentences of a text in order, each on one line, without Markdown's signs and tables."""
    plain = _MARKUP.sub("", _TABLE_ROW.sub("", _FENCED.sub("", text)))
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", plain):
        joined = " ".join(paragraph.split())
        found += [sentence for sentence in _SENTENCE_END.split(joined) if sentence]
    return found


async def _pieces(os: OS, text: str, limit: int, model: str | None) -> AsyncIterator[Chunk]:
    """Paragraphs, or parts of those that are longer than `limit` tokens."""
    for match in _PARAGRAPH.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        paragraph = match[0]
        if not paragraph.strip():
            continue
        count = (await os.tokenize(paragraph, model=model)).count
        if count <= limit:
            yield Chunk(paragraph, line, count)
            continue
        for part, offset in _parts(paragraph):
            part_line = line + paragraph.count("\n", 0, offset)
            async for fitting in _halved(os, part, part_line, limit, model):
                yield fitting


async def _halved(
    os: OS, text: str, line: int, limit: int, model: str | None
) -> AsyncIterator[Chunk]:
    """A text cut in halves, between words where it has any, until each fits."""
    count = (await os.tokenize(text, model=model)).count
    if count <= limit or len(text) == 1:
        yield Chunk(text, line, count)
        return
    middle = text.rfind(" ", 1, len(text) // 2 + 1)
    cut = middle if middle > 0 else len(text) // 2
    for half in (text[:cut], text[cut:].lstrip(" ")):
        async for fitting in _halved(os, half, line, limit, model):
            yield fitting


def _parts(paragraph: str) -> Iterator[tuple[str, int]]:
    """The sentences of a paragraph with their offsets."""
    start = 0
    for gap in _SENTENCE_END.finditer(paragraph):
        yield paragraph[start : gap.start()], start
        start = gap.end()
    if start < len(paragraph):
        yield paragraph[start:], start


def _joined(pieces: list[Chunk]) -> Chunk:
    return Chunk(
        "\n\n".join(piece.text for piece in pieces),
        pieces[0].line,
        sum(piece.tokens for piece in pieces),
    )
