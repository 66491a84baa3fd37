"""Births, signals and deaths of processes.

A program runs as an asyncio task. Signals take effect at the next syscall boundary or, inside a
generation, at the next token boundary: STOP parks the process there, TERM raises `Killed` once in
the syscalls under way (or in the next one) so that the program can clean up with further syscalls
until its deadline, KILL takes everything back at once.

What this does not protect against: a program that neither awaits nor returns holds the event loop;
run such code in a tool or in a process of its own. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from collections.abc import Callable
from typing import Any

from llmos.kernel.accounts import Account, total
from llmos.kernel.clock import Clock
from llmos.kernel.process import INIT, Process, ProcessTable
from llmos.kernel.streams import Console, Pipe
from llmos.kernel.trace import Tracer
from llmos.kernel.waits import Waits
from llmos.syscalls import calls
from llmos.syscalls.errors import ErrorValue, KernelPanic, Killed, SyscallError
from llmos.syscalls.results import Accounting, Exited
from llmos.syscalls.rights import ALL_CAPABILITIES, Capabilities, Quota
from llmos.syscalls.trap import ProgramFunction
from llmos.syscalls.wire import json_value

log = logging.getLogger("llmos.kernel")


class ProgramExit(BaseException):
    """`Exit` was called: unwinds the program with its value."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class Lifecycle:
    def __init__(
        self,
        *,
        table: ProcessTable,
        waits: Waits,
        clock: Clock,
        tracer: Tracer,
        bind: Callable[[Process], Any],
        release: Callable[[Process], None],
        boot: str,
        console_bytes: int,
        max_processes: int,
    ) -> None:
        self._boot = boot
        self._table = table
        self._waits = waits
        self._clock = clock
        self._tracer = tracer
        self._bind = bind
        self._release = release
        self._console_bytes = console_bytes
        self._max_processes = max_processes
        self._abandoned: set[asyncio.Task[None]] = set()
        # what ended processes used, by program
        self.history: dict[str, Accounting] = {}

    # --- birth ------------------------------------------------------------------------------------

    def init(self, quota: Quota) -> Process:
        """Make process 1, which adopts orphans and stands for whoever embeds the kernel."""
        pid = self._table.next_pid()
        process = Process(
            pid=pid,
            parent=pid,
            program="init",
            args="",
            capabilities=ALL_CAPABILITIES,
            account=Account(pid, quota, None),
            nice=0,
            started_s=self._clock.now(),
            boot=self._boot,
            stdout=Console(capacity_bytes=self._console_bytes),
            state="running",
        )
        self._table.add(process)
        return process

    def spawn(
        self,
        parent: Process,
        *,
        program: str,
        function: ProgramFunction,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shown: tuple[Any, ...] | None = None,
        capabilities: Capabilities | None,
        quota: Quota,
        nice: int | None,
        stdin: Pipe | None = None,
        client: str | None = None,
        path_s: float = 0.0,
        prepare: Callable[[Process], dict[str, Any]] | None = None,
    ) -> Process:
        """Start a child. `prepare` may add to the new process and to the program's keywords.

        Raises: SyscallError for a grant that the parent lacks, a spent quota or a full table.
        """
        granted = parent.capabilities if capabilities is None else capabilities
        excess = granted.exceeds(parent.capabilities)
        if excess is not None:
            raise SyscallError(
                "denied",
                f"process {parent.pid} cannot grant {excess}: it does not hold it",
                capability=excess,
            )
        if len(self._table) >= self._max_processes:
            raise SyscallError(
                "busy",
                f"the process table is full ({self._max_processes}); wait for processes to end",
                is_retryable=True,
                limit=self._max_processes,
            )
        parent.account.charge("children", 1)
        pid = self._table.next_pid()
        process = Process(
            pid=pid,
            parent=parent.pid,
            program=program,
            args=_shown(args, kwargs) if shown is None else _shown(shown, {}),
            capabilities=granted,
            account=Account(pid, quota, parent.account),
            nice=parent.nice if nice is None else nice,
            started_s=self._clock.now(),
            boot=self._boot,
            stdout=Console(capacity_bytes=self._console_bytes),
            stdin=stdin,
            state="ready",
            ancestor=None if parent.pid == INIT else parent.root,
            client=parent.client if client is None else client,
            path_s=path_s,
        )
        # What can still be refused is done before the process is entered anywhere.
        try:
            extra = prepare(process) if prepare is not None else {}
            _check_arguments(program, function, args, {**kwargs, **extra})
        except SyscallError:
            parent.account.refund("children", 1)
            raise
        parent.account.children += 1
        self._table.add(process)
        handle = self._bind(process)
        process.task = asyncio.get_running_loop().create_task(
            self._run(process, function, handle, args, {**kwargs, **extra}),
            name=f"{program}-{process.pid}",
        )
        if quota.wall_s is not None:
            limit_s = quota.wall_s
            self._later(process, limit_s, lambda: self._out_of_time(process, limit_s))
        self._tracer.mark("spawn", "process", pid=process.pid, args={"program": program})
        return process

    async def _run(
        self,
        process: Process,
        function: ProgramFunction,
        handle: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        process.state = "running"
        status, value, error, signal = "ok", None, None, None
        try:
            value = json_value(await function(handle, *args, **kwargs))
        except ProgramExit as leaving:
            value = leaving.value
        except (Killed, asyncio.CancelledError):
            status, signal = "killed", process.ending_signal or "KILL"
        except SyscallError as problem:
            status, error = "error", problem.value()
        except GeneratorExit:  # the event loop is gone, and the kernel with it
            raise
        except (KernelPanic, KeyboardInterrupt) as problem:
            self._end(process, _failed(process, _program_error(process, function, problem)))
            raise
        except BaseExceptionGroup as group:
            if group.split(Killed)[1] is not None:
                status, error = "error", _program_error(process, function, group)
            else:
                status, signal = "killed", process.ending_signal or "KILL"
        except BaseException as problem:  # noqa: BLE001 - whatever a program raises, SystemExit too
            status, error = "error", _program_error(process, function, problem)
        self._end(
            process,
            Exited(
                pid=process.pid,
                program=process.program,
                status=status,  # pyright: ignore[reportArgumentType]
                value=value,
                error=error,
                signal=signal,
            ),
        )

    # --- death ------------------------------------------------------------------------------------

    def _end(self, process: Process, exited: Exited) -> None:
        if process.is_over:
            return
        self._continue(process)
        process.exited = exited
        process.state = "zombie"
        process.waiting_on = None
        # Tasks that the program left behind must not wait for ever for a process that is no more.
        for inner in list(process.inflight):
            inner.cancel()
        for undo in reversed(process.on_end or ()):
            undo()
        for timer in process.timers or ():
            timer.cancel()
        self._release(process)
        self._adopt_children(process)
        earlier = self.history.get(process.program)
        spent = process.account.snapshot()
        self.history[process.program] = total([earlier, spent]) if earlier else spent
        parent_account = process.account.parent
        if parent_account is not None:
            parent_account.refund("children", 1)
        self._tracer.span(
            process.program,
            "process",
            started_s=process.started_s,
            ended_s=self._clock.now(),
            pid=process.pid,
            track="life",
            args={"status": exited.status},
        )
        for waiter in process.exit_waiters:
            if not waiter.done():
                waiter.set_result(exited)
        process.exit_waiters.clear()
        parent = self._table.get(process.parent)
        for looking in parent.child_waiters:
            if not looking.done():
                looking.set_result(None)
        if parent.is_over:
            raise KernelPanic(f"process {process.pid} outlived its parent without adoption")

    def _adopt_children(self, process: Process) -> None:
        init = self._table.get(INIT)
        for pid in list(process.children):
            child = self._table.get(pid)
            process.children.discard(pid)
            child.parent = INIT
            init.children.add(pid)
            if child.is_over:
                self._table.remove(child)
            else:
                # nobody is left who could wait for it
                child.on_end = [*(child.on_end or ()), lambda child=child: self.reap_soon(child)]

    def reap_soon(self, process: Process) -> None:
        """Let go of a process for which nobody waits, once what ends it is through."""
        asyncio.get_running_loop().call_soon(self._reap_if_over, process)

    def _reap_if_over(self, process: Process) -> None:
        if process.is_over and self._table.find(process.pid) is process:
            self._table.remove(process)

    async def wait(self, process: Process, call: calls.Wait) -> Exited:
        """Wait for a child to end and reap it."""
        loop = asyncio.get_running_loop()
        if call.pid is None:
            child = await self._any_child(process, call.timeout_s)
        else:
            child = self._table.get(call.pid)
            if child.parent != process.pid:
                raise SyscallError(
                    "denied",
                    f"process {call.pid} is not a child of {process.pid}; only its parent waits",
                    capability="parent",
                )
        if child.exited is None:
            future: asyncio.Future[Exited] = loop.create_future()
            child.exit_waiters.append(future)
            try:
                await self._waits.block(
                    process,
                    future,
                    state="waiting_child",
                    on=f"exit of {child.pid}",
                    target=child.pid,
                    timeout_s=call.timeout_s,
                )
            finally:
                if future in child.exit_waiters:
                    child.exit_waiters.remove(future)
        assert child.exited is not None
        if self._table.find(child.pid) is child:
            self._table.remove(child)
        return child.exited

    async def _any_child(self, process: Process, timeout_s: float | None) -> Process:
        started_s = self._clock.now()
        while True:
            if not process.children:
                raise SyscallError(
                    "not_found", "this process has no children to wait for", what="child", name=None
                )
            for pid in sorted(process.children):
                child = self._table.get(pid)
                if child.is_over:
                    return child
            left_s = None
            if timeout_s is not None:
                left_s = max(0.0, started_s + timeout_s - self._clock.now())
            # At every end all who wait look again: another one may have waited for that child.
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            process.child_waiters.append(future)
            try:
                await self._waits.block(
                    process, future, state="waiting_child", on="any child", timeout_s=left_s
                )
            finally:
                process.child_waiters.remove(future)

    # --- signals ----------------------------------------------------------------------------------

    def signal(self, target: Process, signal: calls.SignalName, *, deadline_s: float = 5.0) -> None:
        """Deliver a signal. A process that has ended takes none, without error."""
        if target.is_over:
            return
        if target.pid == INIT:
            raise SyscallError("denied", "init takes no signals", capability="signal_any")
        self._tracer.mark(f"signal {signal}", "process", pid=target.pid)
        match signal:
            case "STOP":
                self._stop(target)
            case "CONT":
                self._continue(target)
            case "TERM":
                self._terminate(target, deadline_s)
            case "KILL":
                self._kill(target)

    def _stop(self, target: Process) -> None:
        if not target.is_stopped:
            target.is_stopped = True
            target.resumed = asyncio.Event()
            for tell in target.on_stop or ():
                tell(True)

    def _continue(self, target: Process) -> None:
        if target.is_stopped:
            target.is_stopped = False
            assert target.resumed is not None
            target.resumed.set()
            for tell in target.on_stop or ():
                tell(False)

    def _terminate(self, target: Process, deadline_s: float) -> None:
        if target.is_killed or target.ending_signal == "TERM":
            return
        target.ending_signal = "TERM"
        self._later(target, deadline_s, lambda: self.signal(target, "KILL"))
        self._continue(target)
        target.is_terminating = not target.inflight
        target.interrupted = set(target.inflight)
        for task in target.interrupted:
            task.cancel()

    def _kill(self, target: Process, reason: ErrorValue | None = None) -> None:
        target.is_killed = True
        target.ending_signal = "KILL"
        self._continue(target)
        task = target.task
        if task is not None and not task.done():
            task.cancel()
            # A task that swallows its cancellation holds nothing of ours any more.
            self._abandoned.add(task)
            task.add_done_callback(self._abandoned.discard)
        self._end(
            target,
            Exited(
                pid=target.pid,
                program=target.program,
                status="killed",
                signal="KILL",
                error=reason,
            ),
        )

    def _out_of_time(self, process: Process, limit_s: float) -> None:
        if process.is_over:
            return
        reason = ErrorValue(
            code="quota_exceeded",
            message=f"quota wall_s of process {process.pid} is {limit_s:g} s and it ran that long; "
            "spawn it with Quota(wall_s=...) higher",
            fields={"quota": "wall_s", "limit": limit_s, "used": limit_s},
        )
        self._kill(process, reason)

    def _later(self, process: Process, seconds: float, callback: Callable[[], None]) -> None:
        timer = self._clock.call_later(seconds, callback)
        if process.timers is None:
            process.timers = []
        process.timers.append(timer)


def _failed(process: Process, error: ErrorValue) -> Exited:
    return Exited(pid=process.pid, program=process.program, status="error", error=error)


def _program_error(
    process: Process, function: ProgramFunction, problem: BaseException
) -> ErrorValue:
    log.warning("process %d (%s) raised", process.pid, process.program, exc_info=problem)
    code = getattr(inspect.unwrap(function), "__code__", None)
    frames = traceback.extract_tb(problem.__traceback__)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    where = f" at {own[-1].name}:{own[-1].lineno}" if own else ""
    return ErrorValue(
        code="failed",
        message=f"the program raised {type(problem).__name__}{where}: {problem}",
        fields={"exception": type(problem).__name__},
    )


def _check_arguments(
    program: str, function: ProgramFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raises: SyscallError("invalid") when a program cannot be called like this."""
    try:
        inspect.signature(function).bind(None, *args, **kwargs)
    except TypeError as problem:
        raise SyscallError("invalid", f"args of {program}: {problem}", field="args") from problem


def _shown(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    shown = [str(arg) for arg in args] + [f"{key}={value}" for key, value in kwargs.items()]
    text = " ".join(shown).replace("\n", " ")
    return text if len(text) <= 120 else text[:117] + "..."
