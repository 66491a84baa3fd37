"""Python that a model wrote, in an operating-system process of its own.

Bounds processor time, wall time, memory, file sizes, open files and output; starts in an empty
temporary folder with an empty environment; kills everything that it started when it ends, is
cancelled, or this process dies. Where the machine allows user namespaces there is no network and
no other process within reach; `PythonRun.walls` says which walls stood.

What this does NOT protect against, until the full sandbox comes:
- Reading: the program reads every file that the user of the kernel can read.
- Writing: outside its folder it writes wherever that user can write (each file up to the limit).
- Disk: the number of files is not bounded, so many files of the largest size can fill a disk.
- Network and stray processes, where user namespaces are forbidden: there the process group is
  killed, and a program that left the group survives; the number of processes is then bounded only
  for users other than root.
- Flaws of the operating system's kernel: system calls are not filtered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from llmos.kernel import sandbox_child
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.tool import tool

Ending = Literal["exited", "killed", "timeout", "too_much_output"]

_CHILD = Path(sandbox_child.__file__)
_PIECE_BYTES = 16 * 1024
_TAIL_CHARS = 1000
_SIGNALLED = range(129, 129 + 64)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one run."""

    cpu_s: int = 5
    wall_s: float = 10.0
    memory_bytes: int = 512 * 1024 * 1024
    file_bytes: int = 8 * 1024 * 1024
    open_files: int = 64
    processes: int = 16
    output_bytes: int = 64 * 1024


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class PythonRun:
    """How a program ended and what it printed, standard output and errors as they came.

    `status` is its exit status; 128 + N when signal N ended it. `walls` is empty when it ended
    before it could say.
    """

    output: str
    ending: Ending
    status: int
    seconds: float
    walls: tuple[str, ...]


async def python(code: Annotated[str, Field(min_length=1, max_length=4000)]) -> str:
    """Run a Python program and show what it prints."""
    run = await run_python(code)
    if run.ending == "exited" and run.status == 0:
        return run.output or "The program printed nothing; print() the result."
    raise SyscallError(
        "tool_failed",
        f"python: {_reason(run, DEFAULT_LIMITS)}\n{_tail(run.output)}".rstrip(),
        tool="python",
        error=run.ending,
        status=run.status,
    )


async def run_python(
    code: str, *, limits: Limits = DEFAULT_LIMITS, is_isolated: bool = True
) -> PythonRun:
    """Run a program to its end or to a limit; cancellation kills it.

    `is_isolated` False leaves out the namespaces, as on a machine that forbids them.
    Raises: SyscallError("storage") when there is no room for its folder; ("busy") when the machine
    refuses another process.
    """
    started = time.monotonic()
    try:
        folder = Path(tempfile.mkdtemp(prefix="llmos-python-"))
    except OSError as problem:
        raise _no_room(problem) from problem
    try:
        try:
            # A lone surrogate, which JSON can carry, has no UTF-8 form.
            source = code.encode("utf-8", errors="replace")
            (folder / sandbox_child.PROGRAM).write_bytes(source)
        except OSError as problem:
            raise _no_room(problem) from problem
        output, ending, status = await _run(folder, limits, is_isolated=is_isolated)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    walls, text = _split(output)
    return PythonRun(text, ending, status, time.monotonic() - started, walls)


PYTHON_TOOL = tool(python, timeout_s=DEFAULT_LIMITS.wall_s + 5.0)


async def _run(folder: Path, limits: Limits, *, is_isolated: bool) -> tuple[bytes, Ending, int]:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as source:
        try:
            process = await _start(folder, limits, writing, is_isolated=is_isolated)
        finally:
            os.close(writing)
        output = bytearray()
        ending: Ending = "exited"
        try:
            async with _stream(source) as stream, asyncio.timeout(limits.wall_s):
                if await _collect(stream, output, limits.output_bytes):
                    await process.wait()
                else:
                    ending = "too_much_output"
        except TimeoutError:
            ending = "timeout"
        finally:
            # The leader may have ended while others of its group live on.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    code = process.returncode or 0
    status = code if code >= 0 else 128 - code
    if ending == "exited" and status in _SIGNALLED:
        ending = "killed"
    return bytes(output), ending, status


async def _start(
    folder: Path, limits: Limits, output: int, *, is_isolated: bool
) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_CHILD)),
            _settings(limits, is_isolated=is_isolated),
            cwd=folder,
            env={},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    except OSError as problem:
        raise SyscallError(
            "busy", f"no process could be started: {problem.strerror}", is_retryable=True
        ) from problem


def _settings(limits: Limits, *, is_isolated: bool) -> str:
    return json.dumps(
        {
            "parent": os.getpid(),
            "isolate": is_isolated,
            "limits": {
                "CPU": limits.cpu_s,
                "AS": limits.memory_bytes,
                "FSIZE": limits.file_bytes,
                "NOFILE": limits.open_files,
                "NPROC": limits.processes,
                "CORE": 0,
            },
        }
    )


@contextlib.asynccontextmanager
async def _stream(source: FileIO) -> AsyncGenerator[asyncio.StreamReader]:
    """A pipe's reading end as a stream, closed at the end whoever still holds the other one."""
    stream = asyncio.StreamReader(limit=_PIECE_BYTES)  # beyond twice this, the pipe waits
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), source
    )
    try:
        yield stream
    finally:
        transport.close()


async def _collect(stream: asyncio.StreamReader, output: bytearray, limit_bytes: int) -> bool:
    """Read to the end; False when there is more than `limit_bytes`."""
    while data := await stream.read(_PIECE_BYTES):
        room = limit_bytes - len(output)
        output += data[:room]
        if len(data) > room:
            return False
    return True


def _split(output: bytes) -> tuple[tuple[str, ...], str]:
    """The walls that the child named on its first line, and what the program printed."""
    first, newline, rest = output.partition(b"\n")
    if not newline:
        return (), output.decode("utf-8", errors="replace")
    try:
        walls: list[str] = json.loads(first)
    except ValueError:  # the child failed before it could say; the output tells why
        return (), output.decode("utf-8", errors="replace")
    return tuple(walls), rest.decode("utf-8", errors="replace")


def _reason(run: PythonRun, limits: Limits) -> str:
    match run.ending:
        case "exited":
            return f"the program failed with exit status {run.status}"
        case "killed":
            name = signal.Signals(run.status - 128).name
            return f"the program was killed by {name}; it may use {limits.cpu_s} s of processor"
        case "timeout":
            return f"the program ran longer than {limits.wall_s:g} s"
        case "too_much_output":
            return f"the program printed more than {limits.output_bytes} bytes"


def _tail(output: str) -> str:
    """The end of the output: the error of a program stands there."""
    return output if len(output) <= _TAIL_CHARS else "..." + output[-_TAIL_CHARS:]


def _no_room(problem: OSError) -> SyscallError:
    return SyscallError(
        "storage",
        f"the program's temporary folder: {problem.strerror}; free some disk space and retry",
        is_retryable=True,
        path=tempfile.gettempdir(),
    )
