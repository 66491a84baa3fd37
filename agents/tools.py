"""The tools that come with the system: files of the process's home, memory, arithmetic.

Each is a plain typed function; its signature is the schema that a model is held to, its docstring
what the model reads. Those that take `os` act with the rights of the process that calls them.
Python as a tool needs an OS process and so lives behind the kernel (`kernel/sandbox.py`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmos.agents.arithmetic import MAX_EXPRESSION_CHARS, evaluate
from llmos.agents.handle import OS
from llmos.agents.text import read_lossy
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.tool import Tool, tool

# Held to digits and operators, a model that would write prose or an answer writes the sum.
Expression = Annotated[
    str,
    Field(pattern=rf"^[0-9(.-][0-9 .()+*/%^-]{{0,{MAX_EXPRESSION_CHARS - 1}}}$"),
]
_NAMES_SHOWN = 10

Path = Annotated[str, Field(min_length=1, max_length=200)]


def calculator(expression: Expression) -> str:
    """Work out arithmetic with + - * / // % ^ and parentheses."""
    return evaluate(expression)


async def list_files(os: OS, path: Path = ".") -> str:
    """Show the names and sizes of the files in a folder."""
    entries = await os.list(path)
    lines = [
        f"{entry.path}/" if entry.is_folder else f"{entry.path} ({entry.bytes} bytes)"
        for entry in entries
    ]
    return "\n".join(lines) or "The folder is empty."


async def read_file(os: OS, path: Path) -> str:
    """Show the text of a file."""
    try:
        file = await read_lossy(os, path)
    except SyscallError as problem:
        if problem.code != "not_found":
            raise
        raise SyscallError(
            "not_found", f"{problem.message}; {await _nearby(os)}", what="file", name=path
        ) from problem
    notice = "[some bytes are not UTF-8 and are shown as \ufffd]\n" if file.is_lossy else ""
    return notice + file.text


async def write_file(os: OS, path: Path, text: Annotated[str, Field(max_length=20_000)]) -> str:
    """Save a text in a file, replacing what was there."""
    await os.write_text(path, text)
    return f"Saved {len(text.encode())} bytes in {path}."


async def search_memory(os: OS, query: Annotated[str, Field(min_length=1, max_length=200)]) -> str:
    """Look up facts in memory."""
    hits = await os.retrieve(query, k=3)
    return "\n".join(hit.text for hit in hits) or "Nothing in memory fits."


async def _nearby(os: OS) -> str:
    """What there is to read, for a model that named something else."""
    names = [entry.path for entry in await os.list() if not entry.is_folder][:_NAMES_SHOWN]
    return f"the files are {', '.join(names)}" if names else "there are no files"


TOOLS: tuple[Tool, ...] = (
    tool(calculator, timeout_s=5.0),
    tool(list_files),
    tool(read_file),
    tool(write_file),
    tool(search_memory),
)
