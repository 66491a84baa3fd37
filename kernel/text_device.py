"""A device that reads texts: one thread whose passes hold the texts of all agents.

Texts wait in a queue (`text_queue.py`) that makes up passes of like lengths. While one pass is
computed the next ones gather, so agents that ask at the same time share a pass without anybody
waiting on purpose. The thread gives way to those that generate, whose every step waits for its
slowest thread (decision 13). What is computed of a text, the subclasses know.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from llmos.drivers.contract import Allocation, DeviceError
from llmos.kernel.clock import Clock
from llmos.kernel.text_queue import Item, Request, TextQueue
from llmos.kernel.threads import contained, settle, yield_to_others
from llmos.kernel.trace import Tracer
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import DeviceInfo

PRIORITY_STEPS = 10
# Where a text is cut before it is split into tokens, in characters for each token of the window.
TOKEN_CHARS = 64


class Driver(Protocol):
    """What every open driver that reads texts has."""

    def allocations(self) -> list[Allocation]: ...

    def close(self) -> None: ...


D = TypeVar("D", bound=Driver)
R = TypeVar("R", bound=Request[Any, Any])


class TextDevice(ABC, Generic[D, R]):
    """Public methods are for the event loop."""

    driver_kind: ClassVar[str]  # as `llmos devices` shows it
    noun: ClassVar[str]  # what the device is called in messages
    verb: ClassVar[str]  # and what it does: also the name of its spans in a trace

    def __init__(
        self, name: str, open_driver: Callable[[], D], clock: Clock, tracer: Tracer
    ) -> None:
        self.name = name
        self.is_down = False
        self.reason: str | None = None
        self._open_driver = open_driver
        self._clock = clock
        self._tracer = tracer
        self._driver: D | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: asyncio.Future[None] | None = None
        self._thread: threading.Thread | None = None
        self._queue: TextQueue[R] | None = None
        self._wake = threading.Condition()
        self._is_closing = False
        self._passes = 0

    @property
    def driver(self) -> D:
        """The open driver; only its any-thread methods may be used from the event loop."""
        assert self._driver is not None
        return self._driver

    async def start(self) -> None:
        """Open the device once. Raises: SyscallError("device")."""
        if self._opened is None:
            self._loop = asyncio.get_running_loop()
            self._opened = self._loop.create_future()
            self._thread = threading.Thread(
                target=self._run, name=f"{self.driver_kind}-{self.name}", daemon=True
            )
            self._thread.start()
        try:
            await asyncio.shield(self._opened)
        except DeviceError as problem:
            raise SyscallError(
                "device",
                f"{self.noun} {self.name} could not be opened: {problem}",
                device=self.name,
            ) from problem

    async def stop(self) -> None:
        """Close the device; what still waits fails."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def info(self) -> DeviceInfo:
        """The device as `llmos devices` shows it."""
        is_open = self._driver is not None and not self.is_down
        with self._wake:  # the queue is the device thread's as well
            waiting = 0 if self._queue is None else len(self._queue.waiting())
        return DeviceInfo(
            name=self.name,
            driver=self.driver_kind,
            model=self.name,
            state="down" if self.is_down else "ready" if is_open else "opening",
            reason=self.reason,
            waiting=waiting,
            steps=self._passes,
        )

    def allocations(self) -> list[Allocation]:
        return [] if self._driver is None else self._driver.allocations()

    async def _answers(self, request: R) -> list[Any]:
        """Queue a request and wait for all its answers. Raises: SyscallError("device")."""
        with self._wake:
            if self._is_closing or self.is_down:
                why = "was closed" if self._is_closing else f"is down: {self.reason}"
                raise SyscallError("device", f"{self.noun} {self.name} {why}", device=self.name)
            assert self._queue is not None, "texts are queued once the device is open"
            self._queue.push(request)
            self._wake.notify()
        try:
            return await request.done
        except DeviceError as problem:
            raise SyscallError(
                "device", f"{self.noun} {self.name} failed: {problem}", device=self.name
            ) from problem

    # --- device thread ----------------------------------------------------------------------------

    @abstractmethod
    def _pass_tokens(self, driver: D) -> int:
        """About the tokens of one pass of an open driver."""

    @abstractmethod
    def _compute(self, items: Sequence[Item[R]]) -> int:
        """Fill in the answers of a pass; how many had to be computed. Raises: anything."""

    def _after_pass(self) -> None:
        """What is done once everybody has been told, after a pass that computed something."""
        return

    def _run(self) -> None:
        assert self._loop is not None and self._opened is not None
        yield_to_others(PRIORITY_STEPS)
        try:
            self._driver = contained(self._open_driver, is_fatal=True)
        except Exception as problem:  # noqa: BLE001 - passed on to who opens
            self.is_down, self.reason = True, str(problem)
            self._loop.call_soon_threadsafe(settle, self._opened, None, problem)
            return
        self._queue = TextQueue[R](pass_tokens=self._pass_tokens(self._driver))
        self._loop.call_soon_threadsafe(settle, self._opened, None, None)
        while items := self._next_pass():
            self._serve(items)
        self._driver.close()

    def _next_pass(self) -> list[Item[R]]:
        """The texts of the next pass, waiting for some; none when closing or down."""
        assert self._queue is not None
        with self._wake:
            while not (self._is_closing or self.is_down):
                if items := self._queue.next_pass():
                    return items
                self._wake.wait()
            closed = DeviceError(self.reason or "the device was closed")
            for request in self._queue.waiting():
                self._tell(request, closed)
            return []

    def _serve(self, items: Sequence[Item[R]]) -> None:
        """Give each text its answer, and those whose last it was all of theirs."""
        started_s = self._clock.now()
        items = [item for item in items if not item.request.is_gone]
        try:
            computed = self._compute(items)
        except Exception as problem:  # noqa: BLE001 - a dead thread would leave everybody waiting
            self._fail(items, problem)
            return
        requests = list(dict.fromkeys(item.request for item in items))
        if computed:
            self._passes += 1
            assert self._loop is not None
            self._loop.call_soon_threadsafe(
                self._trace, started_s, self._clock.now(), computed, len(requests)
            )
        for request in requests:
            if all(answer is not None for answer in request.answers):
                self._tell(request, None)
        if computed:
            self._after_pass()

    def _fail(self, items: Sequence[Item[R]], problem: Exception) -> None:
        """Fail the requests of a pass; of several, only those that fail alone as well."""
        requests = list(dict.fromkeys(item.request for item in items))
        is_fatal = isinstance(problem, DeviceError) and problem.is_fatal
        if is_fatal:
            self.is_down, self.reason = True, str(problem)
        elif len(requests) > 1:
            for request in requests:
                self._serve([item for item in items if item.request is request])
            return
        for request in requests:
            self._tell(request, problem)

    def _tell(self, request: R, problem: Exception | None) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(settle, request.done, request.answers, problem)

    def _trace(self, started_s: float, ended_s: float, texts: int, requests: int) -> None:
        self._tracer.span(
            self.verb,
            "device",
            started_s=started_s,
            ended_s=ended_s,
            pid=0,
            track=self.name,
            args={"texts": texts, "requests": requests},
        )
