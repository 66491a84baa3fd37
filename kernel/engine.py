"""The engine of one device: a thread of its own, and how the event loop talks to it.

The event loop posts functions into an inbox, which the thread runs between two steps, and hears
back once per step; it never waits for the device. What the thread does is `stepper.py`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

from llmos.drivers.contract import Allocation, DeviceError, LanguageModel, ModelInfo
from llmos.kernel.adapter_slots import AdapterLimits
from llmos.kernel.clock import Clock
from llmos.kernel.generation import Generation
from llmos.kernel.overload import queue_full
from llmos.kernel.planner import Limits
from llmos.kernel.policy import Policy
from llmos.kernel.stepper import Report, State, Stepper, device_failure
from llmos.kernel.threads import contained, settle
from llmos.kernel.trace import Tracer
from llmos.memory.tiers import Tiers
from llmos.syscalls.content import Message
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import DeviceInfo, ToolSpec

T = TypeVar("T")
DEVICE_PID = 0


class Engine:
    """A device with its queue. Public methods are for the event loop."""

    def __init__(
        self,
        name: str,
        open_driver: Callable[[], LanguageModel],
        *,
        policy: Policy,
        clock: Clock,
        tracer: Tracer,
        max_queued: int = 10_000,
        limits: Limits | None = None,
        tiers: Tiers | None = None,
        adapters: AdapterLimits | None = None,
        open_draft: Callable[[], LanguageModel] | None = None,
    ) -> None:
        self.name = name
        self._tracer = tracer
        self._max_queued = max_queued
        self._stepper = Stepper(
            name,
            open_driver,
            policy=policy,
            clock=clock,
            limits=limits,
            tiers=tiers,
            adapters=adapters,
            open_draft=open_draft,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._is_closing = False
        self._is_over = False  # the thread takes nothing from the inbox any more
        self._queued = 0  # generations submitted and not delivered

    @property
    def state(self) -> State:
        return self._stepper.state

    @property
    def driver(self) -> LanguageModel:
        """The open driver; only its any-thread methods may be called from here."""
        driver = self._stepper.driver
        if driver is None:
            raise self._not_ready()
        return driver

    @property
    def model(self) -> ModelInfo:
        return self.driver.info

    @property
    def is_busy(self) -> bool:
        """Whether a generation waits or runs here."""
        return self._queued > 0

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text; any thread. Raises: SyscallError("device")."""
        return self._asked(lambda: self.driver.tokenize(text))

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[ToolSpec] = (), prefix: str = ""
    ) -> list[int]:
        """Token ids of a conversation; any thread.

        Raises: SyscallError("invalid") when the model's template refuses it, or ("device").
        """
        return self._asked(lambda: self.driver.render(messages, tools=tools, prefix=prefix))

    async def start(self) -> None:
        """Open the device. Raises: DeviceError or SyscallError; the engine is then down."""
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(opened,), name=f"engine-{self.name}", daemon=True
        )
        self._thread.start()
        await opened

    async def opened(self) -> None:
        """Wait while the device is opening, also when whoever started it has gone."""
        with suppress(SyscallError):
            await self.on_device(lambda driver: None)

    def has_adapter(self, name: str) -> bool:
        """Whether an adapter is attached."""
        return name in self._stepper.adapters

    async def attach(self, name: str, path: Path) -> None:
        """Attach an adapter, unless it is. Raises: DeviceError or SyscallError."""
        if name not in self._stepper.adapters:
            await self.on_device(lambda driver: self._stepper.attach(name, path))

    async def stop(self) -> None:
        """End every generation and close the device."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def submit(self, generation: Generation) -> None:
        """Queue a generation. Raises: SyscallError("busy") when the queue is full."""
        if self.state != "ready" or self._is_over:
            raise self._not_ready()
        if self._queued >= self._max_queued:
            raise queue_full(
                self.name,
                waiting=self._queued,
                limit=self._max_queued,
                ends=self._stepper.ends,
            )
        self._queued += 1
        if not self._post(lambda: self._stepper.enter(generation)):
            self._queued -= 1
            raise self._not_ready()

    def cancel(self, generation: Generation) -> None:
        """Free a generation's sequence before the next step; it ends without a finish reason."""
        self._post(lambda: self._stepper.cancel(generation))

    def hold(self, pid: int, *, is_held: bool) -> None:
        """Stop or continue all generations of a process at the next token boundary."""
        self._post(lambda: self._stepper.hold(pid, is_held))

    def expect_urgent(self) -> None:
        """Keep steps short for a while: an urgent process has started."""
        self._post(self._stepper.expect_urgent)

    def renice(self, pid: int, nice: int) -> None:
        """Change the priority of a process's generations."""
        self._post(lambda: self._stepper.renice(pid, nice))

    def end_domain(self, domain: str) -> None:
        """Free cached KV that nobody can ask for any more."""
        self._post(lambda: self._stepper.end_domain(domain))

    async def on_device(self, work: Callable[[LanguageModel], T]) -> T:
        """Run something on the engine thread between two steps.

        Raises: DeviceError, or SyscallError("device") when the device is not open.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                if self.state != "ready":
                    raise self._not_ready()
                result = contained(lambda: work(self.driver), is_fatal=False)
            except Exception as problem:
                loop.call_soon_threadsafe(settle, future, None, problem)
                if not isinstance(problem, (DeviceError, SyscallError)):
                    raise
            else:
                loop.call_soon_threadsafe(settle, future, result, None)

        if not self._post(run):
            raise self._not_ready()
        return await future

    @asynccontextmanager
    async def resting(self, most_s: float) -> AsyncGenerator[None]:
        """While entered, and `most_s` at most, the device starts no step."""
        loop = asyncio.get_running_loop()
        reached: asyncio.Future[None] = loop.create_future()
        over = threading.Event()

        def rest() -> None:
            loop.call_soon_threadsafe(settle, reached, None, None)
            over.wait(most_s)

        try:
            if self._post(rest):
                await reached
            yield
        finally:
            over.set()

    def info(self) -> DeviceInfo:
        """The device as `llmos devices` and `Stat` show it."""
        stepper, gauges = self._stepper, self._stepper.gauges
        model = None if stepper.driver is None else stepper.driver.info
        return DeviceInfo(
            name=self.name,
            driver=model.driver if model else "",
            model=model.name if model else self.name,
            state=stepper.state,
            reason=stepper.reason,
            sequences=model.sequences if model else 0,
            running=gauges.running,
            waiting=gauges.waiting,
            cached_sequences=gauges.cached_sequences,
            kv_tokens_used=gauges.kv_tokens,
            kv_tokens_total=(model.kv_cells or model.sequences * model.context_tokens)
            if model
            else 0,
            kv_layout=model.kv_layout if model else None,
            prefill_tokens_per_s=_rate(gauges.prefill_tokens, gauges.prefill_s),
            decode_tokens_per_s=_rate(gauges.decode_tokens, gauges.decode_s),
            steps=gauges.steps,
            shared_tokens=gauges.shared_tokens,
            draft=None if stepper.draft_model is None else stepper.draft_model.state,
        )

    def allocations(self) -> list[Allocation]:
        """The device's large allocations and the KV it has swapped to host memory."""
        driver, swapped = self._stepper.driver, self._stepper.gauges.swapped_bytes
        found = [] if driver is None else list(driver.allocations())
        draft = self._stepper.draft_model
        if draft is not None and draft.driver is not None:
            own = draft.driver.allocations()
            found += [Allocation(f"draft {one.what}", one.bytes) for one in own]
        return [*found, Allocation("swapped_kv", swapped)] if swapped else found

    def _deliver(self, report: Report) -> None:
        for generation, piece in report.pieces:
            if generation.pieces is not None:
                generation.pieces.put_nowait(piece)
        for generation, outcome in report.ended:
            self._queued -= 1
            if not generation.done.done():
                generation.done.set_result(outcome)
        if report.started_s is not None:
            self._tracer.span(
                "step",
                "device",
                started_s=report.started_s,
                ended_s=report.ended_s,
                pid=DEVICE_PID,
                track=self.name,
                args={"prefill": report.prefill_tokens, "decode": report.decode_tokens},
            )

    def _post(self, work: Callable[[], None]) -> bool:
        """Have the thread run something; False when the thread is at its end."""
        with self._wake:
            if self._is_over:
                return False
            self._inbox.append(work)
            self._wake.notify()
            return True

    def _asked(self, work: Callable[[], T]) -> T:
        try:
            return contained(work, is_fatal=False)
        except DeviceError as problem:
            raise device_failure(self.name, problem) from problem

    def _not_ready(self) -> SyscallError:
        return SyscallError(
            "device",
            f"device {self.name} is {self.state}: {self._stepper.reason}",
            is_retryable=self.state in ("opening", "down"),
            device=self.name,
        )

    # --- engine thread ----------------------------------------------------------------------------

    def _run(self, opened: asyncio.Future[None]) -> None:
        try:
            self._stepper.open()
        except Exception as problem:  # noqa: BLE001 - passed on to who opens
            self._tell(settle, opened, None, problem)
            self._finish()
            return
        self._tell(settle, opened, None, None)
        try:
            while self._take_inbox():
                self._stepper.iterate()
                self._publish()
            self._stepper.close()
        except Exception as panic:  # noqa: BLE001 - a dead thread would leave everybody waiting
            self._stepper.panic(panic)
            context = {"message": f"engine {self.name} panicked", "exception": panic}
            assert self._loop is not None
            self._tell(self._loop.call_exception_handler, context)
        self._finish()
        self._publish()

    def _finish(self) -> None:
        """Take no more, and answer what is in the inbox: the device is closed or down."""
        with self._wake:
            self._is_over = True
        while self._inbox:
            self._inbox.popleft()()

    def _take_inbox(self) -> bool:
        """Run what was posted; waits while there is nothing to do. False: the engine closes."""
        while True:
            with self._wake:
                while not self._inbox and not self._is_closing and not self._stepper.has_work:
                    self._wake.wait()
                is_closing = self._is_closing
            while self._inbox:
                # Taken one by one: if this one panics, the others are still there to be answered.
                self._inbox.popleft()()
            if is_closing:
                return False
            if self._stepper.has_work:
                return True
            self._publish()

    def _publish(self) -> None:
        report = self._stepper.take_report()
        if report is not None:
            self._tell(self._deliver, report)

    def _tell(self, function: Callable[..., object], *args: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(function, *args)


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if seconds > 0 and tokens else None
