"""Jobs: pipelines of programs that a person started, in the foreground or the background.

A job owns the pids of its stages, collects the last stage's output and waits for all of them.
Foreground means: output goes to the screen as it comes, what is typed goes to the first stage,
Ctrl-C sends TERM (a second one KILL) and Ctrl-Z stops the job and returns.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rich.text import Text

from llmos.arguments import check_arguments, load_program, parse_arguments
from llmos.exits import UsageError
from llmos.syscalls.calls import SignalName
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Exited
from llmos.syscalls.rights import Quota
from llmos.syscalls.trap import ProgramFunction
from llmos.syscalls.values import JsonValue
from llmos.terminal import Terminal, signals

if TYPE_CHECKING:
    from llmos.agents.handle import OS
    from llmos.kernel.kernel import Kernel

OK, FAILED, INTERRUPTED = 0, 1, 130
_KEPT_BYTES = 1 << 20


@dataclass(slots=True, eq=False)
class Job:
    """Programs that run as one. `output` is the newest of the last stage's standard output, as
    `rendered` shows it.
    """

    number: int
    text: str
    pids: tuple[int, ...]
    state: Literal["running", "stopped", "done"] = "running"
    exits: dict[int, Exited] = field(default_factory=dict[int, Exited])
    output: bytearray = field(default_factory=bytearray)
    unseen_bytes: int = 0
    is_in_foreground: bool = False
    is_input_open: bool = True
    is_interrupted: bool = False
    is_announced: bool = False
    following: asyncio.Task[Any] | None = None
    rendered: Callable[[bytes], bytes] = bytes

    @property
    def last(self) -> Exited | None:
        """How the last stage ended; its value is the job's."""
        return self.exits.get(self.pids[-1])

    @property
    def status(self) -> int:
        """The exit status of a job that is done."""
        if self.is_interrupted:
            return INTERRUPTED
        return OK if self.last is not None and self.last.status == "ok" else FAILED

    def show_unseen(self, terminal: Terminal) -> None:
        """Write what came while nobody looked."""
        if self.unseen_bytes:
            terminal.write(bytes(self.output[-self.unseen_bytes :]))
            self.unseen_bytes = 0


class Jobs:
    """The jobs of one shell or command."""

    def __init__(self, kernel: Kernel, terminal: Terminal, *, can_stop: bool = False) -> None:
        self._kernel = kernel
        self._os: OS = kernel.os
        self._terminal = terminal
        self._can_stop = can_stop
        self._jobs: dict[int, Job] = {}
        self._signalling: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    @property
    def alive(self) -> list[Job]:
        """The jobs that run or are stopped, oldest first."""
        return [job for job in self if job.state != "done"]

    def find(self, number: int | None) -> Job:
        """The job with a number, or the newest one. Raises: SyscallError("not_found")."""
        if number is None and self.alive:
            return self.alive[-1]
        job = self._jobs.get(number) if number is not None else None
        if job is None:
            wanted = "job" if number is None else f"job {number}"
            raise SyscallError("not_found", f"there is no {wanted}; `jobs` lists them", what="job")
        return job

    async def start(
        self,
        stages: Sequence[Sequence[str]],
        text: str,
        *,
        quota: Quota | None = None,
        nice: int | None = None,
    ) -> Job:
        """Start a pipeline: the programs of `stages`, each one's output feeding the next.

        Raises: UsageError for a program or arguments that do not exist, SyscallError when a stage
        cannot start; those before it are then killed.
        """
        pids: list[int] = []
        try:
            for name, *words in stages:
                arguments = parse_arguments(words)
                program = load_program(name)
                check_arguments(name, self._function(program), arguments)
                pid = await self._os.spawn(
                    program,
                    *arguments.args,
                    quota=quota,
                    nice=nice,
                    stdin_from=pids[-1] if pids else None,
                    is_interactive=not pids and self._terminal.has_input,
                    **arguments.kwargs,
                )
                pids.append(pid)
        except BaseException:
            for pid in pids:
                await self._os.signal(pid, "KILL")
                await self._os.wait(pid)
            raise
        return self._watch(text, pids, is_input_open=self._terminal.has_input)

    def adopt(self, pid: int, text: str, rendered: Callable[[bytes], bytes] = bytes) -> Job:
        """Make a process that was started otherwise a job, in the background."""
        return self._watch(text, [pid], is_input_open=False, rendered=rendered)

    async def foreground(self, job: Job) -> None:
        """Give a job the terminal until it ends or is stopped. Raises: BrokenPipeError."""
        assert job.following is not None
        stopped = asyncio.get_running_loop().create_future()
        handlers: dict[signal.Signals, Callable[[], object]] = {
            signal.SIGINT: lambda: self._interrupt(job),
            signal.SIGTERM: lambda: self._interrupt(job),
        }
        if self._can_stop:
            handlers[signal.SIGTSTP] = lambda: stopped.done() or stopped.set_result(None)
        job.is_in_foreground = True
        job.show_unseen(self._terminal)
        feeding = asyncio.create_task(self._feed(job))
        try:
            if job.state == "stopped":
                await self.signal(job, "CONT")
            with signals(handlers):
                await asyncio.wait({job.following, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not job.following.done():
                await self.signal(job, "STOP")
        finally:
            job.is_in_foreground = False
            feeding.cancel()
            with suppress(asyncio.CancelledError):
                await feeding
        if job.following.done():
            self._finish(job)

    async def signal(self, job: Job, name: SignalName) -> None:
        """Signal all stages that live."""
        for pid in job.pids:
            if pid not in job.exits:
                with suppress(SyscallError):  # it ended meanwhile
                    await self._os.signal(pid, name)
        if name in ("STOP", "CONT") and job.state != "done":
            job.state = "stopped" if name == "STOP" else "running"

    def announce(self) -> list[Job]:
        """Background jobs that have ended since the last call; they leave the table."""
        ended = [job for job in self if job.following is not None and job.following.done()]
        for job in ended:
            self._finish(job)
        return ended

    async def end_all(self) -> None:
        """Terminate what is left, and wait for it."""
        for job in self.alive:
            await self.signal(job, "CONT")
            await self.signal(job, "TERM")
        await asyncio.gather(*(job.following for job in self if job.following is not None))

    async def wait_all(self) -> None:
        """Wait until every job has ended."""
        await asyncio.gather(*(job.following for job in self if job.following is not None))

    # --- internals --------------------------------------------------------------------------------

    def _watch(
        self,
        text: str,
        pids: Sequence[int],
        *,
        is_input_open: bool,
        rendered: Callable[[bytes], bytes] = bytes,
    ) -> Job:
        number = max(self._jobs, default=0) + 1
        job = Job(number, text, tuple(pids), is_input_open=is_input_open, rendered=rendered)
        self._jobs[number] = job
        job.following = asyncio.create_task(self._follow(job))
        return job

    def _function(self, program: str | ProgramFunction) -> ProgramFunction:
        if not isinstance(program, str):
            return program
        try:
            return self._kernel.programs.find(program)
        except SyscallError as problem:
            raise UsageError(problem.message) from problem

    async def _follow(self, job: Job) -> None:
        # The output is opened before the wait that reaps the process and forgets its console.
        await asyncio.gather(self._collect(job), *(self._reap(job, pid) for pid in job.pids))
        job.state = "done"

    async def _collect(self, job: Job) -> None:
        async for written in self._kernel.output(job.pids[-1]):
            data = job.rendered(written)
            job.output += data
            if job.is_in_foreground:
                self._terminal.write(data)
            else:
                job.unseen_bytes = min(job.unseen_bytes + len(data), _KEPT_BYTES)
            del job.output[:-_KEPT_BYTES]

    async def _reap(self, job: Job, pid: int) -> None:
        job.exits[pid] = await self._os.wait(pid)

    async def _feed(self, job: Job) -> None:
        """Pass on what is typed until the input ends or nobody reads it."""
        if not job.is_input_open:
            return
        first = job.pids[0]
        with suppress(SyscallError):  # the program has ended or closed its input
            async for data in self._terminal.typed():
                await self._kernel.feed(first, data)
            job.is_input_open = False
            self._kernel.close_input(first)

    def _finish(self, job: Job) -> None:
        """Take an ended job off the table, raising what went wrong while following it."""
        assert job.following is not None
        self._jobs.pop(job.number, None)
        job.following.result()

    def _interrupt(self, job: Job) -> None:
        name: SignalName = "KILL" if job.is_interrupted else "TERM"
        job.is_interrupted = True
        task = asyncio.create_task(self.signal(job, name))
        self._signalling.add(task)
        task.add_done_callback(self._signalling.discard)


def describe(job: Job) -> str:
    """A job in one line."""
    pids = " ".join(str(pid) for pid in job.pids)
    return f"[{job.number}] {job.state}  {job.text}  (pid {pids})"


def show_outcome(job: Job, terminal: Terminal) -> None:
    """Print what a job wrote unseen, why any stage failed, and what it returned.

    A program writes for people and returns for programs: a text that it has just written is not
    printed again, and another value only when it wrote nothing.
    """
    job.show_unseen(terminal)
    terminal.end_line()
    for pid in job.pids:
        exited = job.exits.get(pid)
        if exited is not None and exited.status != "ok" and not job.is_interrupted:
            terminal.errors.print(Text(f"llmos: {why(exited)}", style="red"), soft_wrap=True)
    last = job.last
    if last is None or last.status != "ok":
        return
    written = job.output.decode("utf-8", errors="replace").strip()
    text = value_text(last.value)
    is_said = written.endswith(text.strip()) if isinstance(last.value, str) else bool(written)
    if text and not is_said:
        terminal.write(text.encode() + b"\n")


def value_text(value: JsonValue) -> str:
    """A program's value for a person: a text as it is, nothing for None, JSON for the rest."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, indent=2, ensure_ascii=False)


def why(exited: Exited) -> str:
    """Why a process ended badly, in one line."""
    who = f"{exited.program} (pid {exited.pid})"
    if exited.error is not None:
        return f"{who} failed: {exited.error.code}: {exited.error.message}"
    return f"{who} was killed by {exited.signal}"
