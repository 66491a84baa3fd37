"""The process table: who exists, whose child it is, and what state it is in.

Owns no behaviour of its own beyond the table's invariants; `lifecycle.py` starts and ends
processes, `waits.py` blocks them. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos.kernel.accounts import Account
from llmos.syscalls.errors import KernelPanic, SyscallError
from llmos.syscalls.results import Exited, Mail, ProcessInfo, ProcessState
from llmos.syscalls.rights import Capabilities

if TYPE_CHECKING:
    from llmos.kernel.files import OpenFile
    from llmos.kernel.streams import Console, Pipe
    from llmos.memory.context import Context

INIT = 1


class Root(NamedTuple):
    """The process below init that another descends from: what a user waits for."""

    pid: int
    started_s: float


@dataclass(slots=True, eq=False)
class Process:
    """One process. Everything that most processes never use is created when first needed."""

    pid: int
    parent: int
    program: str
    args: str
    capabilities: Capabilities
    account: Account
    nice: int
    started_s: float
    boot: str
    stdout: Console | Pipe
    stdin: Pipe | None = None
    state: ProcessState = "new"
    waiting_on: str | None = None
    task: asyncio.Task[None] | None = None
    # tasks of this process that are inside a syscall now
    inflight: set[asyncio.Task[Any]] = field(default_factory=set[asyncio.Task[Any]])
    children: set[int] = field(default_factory=set[int])
    is_stopped: bool = False
    resumed: asyncio.Event | None = None
    # TERM is to be raised in these tasks, or where there were none, by the next syscall
    interrupted: set[asyncio.Task[Any]] | None = None
    is_terminating: bool = False
    is_killed: bool = False
    ending_signal: str | None = None
    exited: Exited | None = None
    exit_waiters: list[asyncio.Future[Exited]] = field(
        default_factory=list["asyncio.Future[Exited]"]
    )
    child_waiters: list[asyncio.Future[None]] = field(default_factory=list["asyncio.Future[None]"])
    mailbox: deque[Mail] | None = None
    receivers: list[Any] | None = None  # ipc.Receiver, waiting for mail
    senders: deque[asyncio.Future[None]] | None = None  # waiting for room in the mailbox
    topics: set[str] | None = None
    contexts: dict[int, Context] | None = None
    files: dict[int, OpenFile] | None = None
    home: Path | None = None
    ancestor: Root | None = None  # None: the process is a root itself
    client: str = ""  # on whose behalf it runs; children inherit it
    acts_for_anyone: bool = False  # a process of the kernel's own may say for whom others run
    path_s: float = 0.0  # how long, as expected, its task graph goes on from its start
    timers: list[Any] | None = None
    # undone when the process ends, newest first
    on_end: list[Callable[[], None]] | None = None
    on_stop: list[Callable[[bool], None]] | None = None
    on_nice: list[Callable[[int], None]] | None = None

    @property
    def is_over(self) -> bool:
        return self.exited is not None

    @property
    def root(self) -> Root:
        """The process below init that this one descends from, or itself."""
        return self.ancestor or Root(self.pid, self.started_s)

    @property
    def namespace(self) -> str:
        """The process's own memory namespace; no process of another boot has the same."""
        return f"process-{self.boot}-{self.pid}"

    @property
    def shown_state(self) -> ProcessState:
        """The state as others see it: stopped hides what the process waits for."""
        return "stopped" if self.is_stopped and not self.is_over else self.state

    def info(self, now_s: float, tokens_under_way: int = 0) -> ProcessInfo:
        """This process as a row of `ps`, with tokens of generations that have not ended yet."""
        return ProcessInfo(
            pid=self.pid,
            parent=self.parent,
            program=self.program,
            args=self.args,
            state=self.shown_state,
            waiting_on=self.waiting_on,
            nice=self.nice,
            age_s=now_s - self.started_s,
            contexts=tuple(self.contexts or ()),
            accounting=self.account.snapshot(tokens_under_way),
            capabilities=self.capabilities,
            quota=self.account.quota,
        )


class ProcessTable:
    """All processes by pid, zombies included."""

    def __init__(self) -> None:
        self._processes: dict[int, Process] = {}
        self._next_pid = INIT

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._processes.values()))

    def __len__(self) -> int:
        return len(self._processes)

    def next_pid(self) -> int:
        """A pid that was never used before."""
        pid = self._next_pid
        self._next_pid += 1
        return pid

    def add(self, process: Process) -> None:
        """Enter a process and make it its parent's child."""
        if process.pid in self._processes:
            raise KernelPanic(f"pid {process.pid} is already in the table")
        self._processes[process.pid] = process
        if process.pid != INIT:
            self._processes[process.parent].children.add(process.pid)

    def get(self, pid: int) -> Process:
        """A process by pid. Raises: SyscallError("not_found")."""
        process = self._processes.get(pid)
        if process is None:
            raise SyscallError(
                "not_found",
                f"there is no process {pid}; it never existed or was already waited for",
                what="process",
                name=pid,
            )
        return process

    def find(self, pid: int) -> Process | None:
        """A process by pid, or None."""
        return self._processes.get(pid)

    def remove(self, process: Process) -> None:
        """Forget a process that has ended; its children must have been adopted."""
        if process.children or not process.is_over:
            raise KernelPanic(f"process {process.pid} was removed while it or a child lives")
        del self._processes[process.pid]
        parent = self._processes.get(process.parent)
        if parent is not None:
            parent.children.discard(process.pid)
        process.state = "dead"

    def descends(self, process: Process, ancestor: Process) -> bool:
        """Whether `process` is `ancestor` or one of its descendants."""
        current: Process | None = process
        while current is not None:
            if current is ancestor:
                return True
            current = None if current.pid == INIT else self._processes.get(current.parent)
        return False
