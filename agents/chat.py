"""Talk with the model: a line in, a streamed answer out, one context for the conversation."""

from __future__ import annotations

from llmos.agents.handle import OS
from llmos.agents.prompts import prompt
from llmos.agents.text import read_lines
from llmos.syscalls.content import system as system_message
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Delta


async def chat(
    os: OS, *, system: str | None = None, model: str | None = None, max_tokens: int = 256
) -> int:
    """Answer the lines of standard input until they end; returns the number of answers."""
    opening = prompt("chat").opening() if system is None else [system_message(system)]
    context = await os.context_open(opening, model=model)
    turns = 0
    async for line in read_lines(os):
        if not line.strip():
            continue
        try:
            await _answer(os, context, line, model, max_tokens)
            turns += 1
        except SyscallError as problem:
            if problem.code != "context_overflow":
                raise
            await os.print(problem)  # the line is too long; the next one may do
    return turns


async def _answer(os: OS, context: int, line: str, model: str | None, max_tokens: int) -> None:
    pieces = os.stream(
        [prompt("chat").turn(line=line)],
        context=context,
        model=model,
        max_tokens=max_tokens,
    )
    async for piece in pieces:
        if isinstance(piece, Delta):
            await os.write(piece.text)
    await os.write("\n")
