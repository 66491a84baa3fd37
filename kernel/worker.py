"""A worker: an OS process that does one job and tells of it in JSON lines.

Owns the child's life: start, events, stop and continue, a polite end and a sure one, reaping.
Refuses to know what the job is. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonObject

LINE_BYTES = 1024 * 1024  # longest event
TAIL_BYTES, TAIL_LINES = 4096, 12  # of a worker's log, quoted when it dies

OnEvent = Callable[[JsonObject], None]


class Worker:
    """One run of a command. `log` receives its standard error; `grace_s` follows a SIGTERM."""

    def __init__(self, command: Sequence[str], *, log: Path, grace_s: float) -> None:
        self._command = tuple(command)
        self._log = log
        self._grace_s = grace_s
        self._process: asyncio.subprocess.Process | None = None
        self._is_held = False
        self._is_paused = False

    @property
    def is_held(self) -> bool:
        """Whether somebody holds it, so that it would not go on after a pause."""
        return self._is_held

    async def run(self, on_event: OnEvent) -> None:
        """Start the process and hand on its events until it ends.

        Cancelling this sends SIGTERM, hands on what the worker still says, and sends SIGKILL after
        the grace time or at a second cancellation; the process is always reaped.
        Raises: SyscallError("failed") with the end of its log when its exit status is not 0;
        ("storage") when the log cannot be written.
        """
        try:
            log = self._log.open("wb")
        except OSError as problem:
            raise SyscallError(
                "storage", f"{self._log} cannot be written: {problem}", path=str(self._log)
            ) from problem
        with log:
            # A group of its own: Ctrl-C at the terminal is for the kernel. Not a session of its
            # own: nice compares only processes of one session where the system groups by session.
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                process_group=0,
                limit=LINE_BYTES,
            )
        self._process = process
        if self._is_held or self._is_paused:
            self._signal(signal.SIGSTOP)
        try:
            status = await _follow(process, on_event)
        finally:
            if process.returncode is None:
                await self._end(process, on_event)
        if status != 0:
            raise self._died(status)

    def hold(self, is_held: bool) -> None:
        """Stop the process where it is, or let it go on; before its start, have it start so."""
        self._is_held = is_held
        self._stop_or_continue()

    def pause(self, is_paused: bool) -> None:
        """As `hold`, for a reason of its own: the process goes on when neither holds it."""
        self._is_paused = is_paused
        self._stop_or_continue()

    def renice(self, nice: int) -> None:
        """Set the process's nice value, as far as the system lets."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.setpriority(os.PRIO_PROCESS, self._process.pid, nice)

    def _stop_or_continue(self) -> None:
        is_still = self._is_held or self._is_paused
        self._signal(signal.SIGSTOP if is_still else signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        # Not Process.send_signal: it may reap the child, whose exit status the loop then misses.
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def _end(self, process: asyncio.subprocess.Process, on_event: OnEvent) -> None:
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)  # a stopped process takes a signal only once it goes on
        try:
            async with asyncio.timeout(self._grace_s):
                await _follow(process, on_event)
        except TimeoutError:
            pass  # the grace is over
        finally:
            self._signal(signal.SIGKILL)
            await process.wait()

    def _died(self, status: int) -> SyscallError:
        how = f"status {status}" if status > 0 else signal.Signals(-status).name
        if status == -signal.SIGKILL:
            how += " (from outside; where memory ran out, the system does this)"
        tail = _tail(self._log)
        return SyscallError(
            "failed",
            f"the worker ended with {how}; its log ends: {tail or '(nothing)'}",
            status=status,
            log=str(self._log),
        )


async def _follow(process: asyncio.subprocess.Process, on_event: OnEvent) -> int:
    """Hand on events until the process ends; its exit status."""
    assert process.stdout is not None
    async for line in process.stdout:
        on_event(json.loads(line))
    return await process.wait()


def _tail(log: Path) -> str:
    """The last lines of a log, without the lines that progress bars overwrote."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.rsplit("\r", 1)[-1] for line in text.split("\n")]
    return "\n".join([line for line in lines if line.strip()][-TAIL_LINES:])
