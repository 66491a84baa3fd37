"""Small programs for the shell and its pipes: text in on standard input, text out."""

from __future__ import annotations

import re

from llmos.agents.handle import OS
from llmos.agents.text import read_all_input, read_lines, read_lossy
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonValue


async def echo(os: OS, *words: JsonValue) -> None:
    """Write the words on one line."""
    await os.print(*words)


async def cat(os: OS, *paths: str) -> None:
    """Copy files, or standard input, to standard output as they are."""
    if paths:
        for path in paths:
            await os.write((await read_lossy(os, str(path))).data)
        return
    while True:
        data = await os.read(0)
        if data.data:
            await os.write(data.data)
        if data.is_eof:
            return


async def upper(os: OS) -> None:
    """Copy lines in upper case."""
    async for line in read_lines(os):
        await os.print(line.upper())


async def grep(os: OS, pattern: JsonValue, *, ignore_case: bool = False) -> int:
    """Copy the lines that match a regular expression; returns how many did."""
    try:
        wanted = re.compile(str(pattern), re.IGNORECASE if ignore_case else 0)
    except re.error as problem:
        raise SyscallError(
            "invalid", f"pattern: {pattern!r} is no regular expression: {problem}", field="pattern"
        ) from problem
    count = 0
    async for line in read_lines(os):
        if wanted.search(line):
            count += 1
            await os.print(line)
    return count


async def wc(os: OS) -> dict[str, int]:
    """Count lines, words and bytes of standard input."""
    given = await read_all_input(os)
    counts = {
        "lines": given.data.count(b"\n"),
        "words": len(given.text.split()),
        "bytes": len(given.data),
    }
    await os.print(*counts.values())
    return counts


async def sleep(os: OS, seconds: JsonValue) -> None:
    """Do nothing for some time on the kernel's clock."""
    if not isinstance(seconds, int | float) or seconds < 0:
        raise SyscallError(
            "invalid", f"seconds: {seconds!r} is not a number from 0 up", field="seconds"
        )
    await os.sleep(seconds)
