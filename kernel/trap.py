"""The trap of an in-process program: from a call to its result, or to the signal that ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar, cast

from llmos.kernel.clock import Clock
from llmos.kernel.gate import Gate
from llmos.kernel.process import INIT, Process
from llmos.kernel.trace import Tracer
from llmos.syscalls.calls import Call, Generate
from llmos.syscalls.errors import Killed, SyscallError
from llmos.syscalls.results import Delta, Generated
from llmos.syscalls.trap import ProgramFunction
from llmos.syscalls.values import Value

R = TypeVar("R")
T = TypeVar("T")

Dispatch = Callable[[Process, Call[Any]], Awaitable[Value]]
OpenStream = Callable[[Process, Generate], AsyncIterator[Delta | Generated]]


class TaskTrap:
    """Bound to one process; every method runs in the program's own task."""

    __slots__ = ("_clock", "_dispatch", "_gate", "_load", "_open_stream", "_process", "_tracer")

    def __init__(
        self,
        process: Process,
        *,
        gate: Gate,
        dispatch: Dispatch,
        open_stream: OpenStream,
        load: Callable[[ProgramFunction], str],
        clock: Clock,
        tracer: Tracer,
    ) -> None:
        self._process = process
        self._gate = gate
        self._dispatch = dispatch
        self._open_stream = open_stream
        self._load = load
        self._clock = clock
        self._tracer = tracer

    @property
    def pid(self) -> int:
        return self._process.pid

    def load(self, program: ProgramFunction) -> str:
        return self._load(program)

    async def call(self, call: Call[R]) -> R:
        return cast(R, await self._traced(call, self._serve(call)))

    async def stream(self, call: Generate) -> AsyncIterator[Delta | Generated]:
        await self._guarded(self._gate.admit(self._process, call))
        pieces = self._open_stream(self._process, call)
        started = self._clock.now()
        try:
            while True:
                piece = await self._guarded(anext(pieces))
                await self._guarded(self._gate.boundary(self._process))
                if isinstance(piece, Generated):
                    self._gate.record(self._process, call, piece)
                    yield piece
                    return
                yield piece
        finally:
            await pieces.aclose()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
            self._span("generate", started, is_ok=True)

    async def _serve(self, call: Call[Any]) -> Value:
        process = self._process
        recalled = await self._gate.admit(process, call)
        if recalled is not None:
            return recalled
        result = await self._dispatch(process, call)
        if process.is_stopped or process.is_terminating or process.is_killed:
            await self._gate.boundary(process)
        self._gate.record(process, call, result)
        return result

    async def _traced(self, call: Call[Any], serving: Awaitable[Value]) -> Value:
        started = self._clock.now()
        name = type(call).__name__
        try:
            result = await self._guarded(serving)
        except SyscallError as problem:
            self._span(name, started, is_ok=False, code=problem.code)
            raise
        self._span(name, started, is_ok=True)
        return result

    async def _guarded(self, serving: Awaitable[T]) -> T:
        """Await on behalf of the process, so that a signal can interrupt it."""
        process = self._process
        task = asyncio.current_task()
        if task is None or process.pid == INIT:
            return await serving
        process.inflight.add(task)
        try:
            return await serving
        except asyncio.CancelledError:
            if process.interrupted is not None and task in process.interrupted:
                process.interrupted.discard(task)
                task.uncancel()
                raise Killed("TERM") from None
            raise
        finally:
            process.inflight.discard(task)

    def _span(self, name: str, started_s: float, *, is_ok: bool, code: str | None = None) -> None:
        self._tracer.span(
            name,
            "syscall",
            started_s=started_s,
            ended_s=self._clock.now(),
            pid=self._process.pid,
            args=None if is_ok else {"error": code},
        )
