"""The embedding device: one thread that batches the texts of all agents.

While one batch is computed the next one gathers, so agents that embed at the same time share a
forward pass without anybody waiting on purpose. The thread gives way to those that generate, whose
every step waits for its slowest thread (decision 13).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmos.drivers.contract import Allocation, DeviceError, EmbeddingInfo, EmbeddingModel
from llmos.kernel.clock import Clock
from llmos.kernel.threads import contained, settle, yield_to_others
from llmos.kernel.trace import Tracer
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import DeviceInfo

Vectors = list[list[float]]
BATCH_TEXTS = 64
PRIORITY_STEPS = 10


@dataclass(slots=True, eq=False)
class _Request:
    texts: Sequence[str]
    done: asyncio.Future[Vectors]


class Embedder:
    """Public methods are for the event loop."""

    def __init__(
        self, name: str, open_driver: Callable[[], EmbeddingModel], clock: Clock, tracer: Tracer
    ) -> None:
        self.name = name
        self.is_down = False
        self.reason: str | None = None
        self._open_driver = open_driver
        self._clock = clock
        self._tracer = tracer
        self._driver: EmbeddingModel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: asyncio.Future[None] | None = None
        self._thread: threading.Thread | None = None
        self._inbox: deque[_Request] = deque()
        self._wake = threading.Condition()
        self._is_closing = False
        self._batches = 0

    @property
    def driver(self) -> EmbeddingModel:
        """The open driver; only `count` and `info` may be used from the event loop."""
        assert self._driver is not None
        return self._driver

    @property
    def model(self) -> EmbeddingInfo:
        return self.driver.info

    async def start(self) -> None:
        """Open the device once. Raises: SyscallError("device")."""
        if self._opened is None:
            self._loop = asyncio.get_running_loop()
            self._opened = self._loop.create_future()
            self._thread = threading.Thread(
                target=self._run, name=f"embedder-{self.name}", daemon=True
            )
            self._thread.start()
        try:
            await asyncio.shield(self._opened)
        except DeviceError as problem:
            raise SyscallError(
                "device",
                f"embedding device {self.name} could not be opened: {problem}",
                device=self.name,
            ) from problem

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One unit-length vector a text. Raises: SyscallError("device")."""
        request = _Request(texts, asyncio.get_running_loop().create_future())
        with self._wake:
            if self._is_closing:
                raise SyscallError(
                    "device", f"embedding device {self.name} was closed", device=self.name
                )
            self._inbox.append(request)
            self._wake.notify()
        try:
            return await request.done
        except DeviceError as problem:
            raise SyscallError(
                "device", f"embedding failed: {problem}", device=self.name
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
        return DeviceInfo(
            name=self.name,
            driver="embedding",
            model=self.name,
            state="down" if self.is_down else "ready" if is_open else "opening",
            reason=self.reason,
            waiting=len(self._inbox),
            steps=self._batches,
        )

    def allocations(self) -> list[Allocation]:
        return [] if self._driver is None else self._driver.allocations()

    # --- device thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        assert self._loop is not None and self._opened is not None
        yield_to_others(PRIORITY_STEPS)
        try:
            self._driver = contained(self._open_driver, is_fatal=True)
        except Exception as problem:  # noqa: BLE001 - passed on to who opens
            self.is_down, self.reason = True, str(problem)
            self._loop.call_soon_threadsafe(settle, self._opened, None, problem)
            return
        self._loop.call_soon_threadsafe(settle, self._opened, None, None)
        while True:
            batch = self._next_batch()
            if not batch:
                break
            self._serve(batch)
        self._driver.close()

    def _next_batch(self) -> list[_Request]:
        """The requests of the next forward pass, waiting for one; none when closing."""
        with self._wake:
            while not self._inbox and not self._is_closing:
                self._wake.wait()
            if self._is_closing:
                waiting = list(self._inbox)
                self._inbox.clear()
                for request in waiting:
                    self._tell(request, None, DeviceError("the device was closed"))
                return []
            batch = [self._inbox.popleft()]
            size = len(batch[0].texts)
            while self._inbox and size + len(self._inbox[0].texts) <= BATCH_TEXTS:
                batch.append(self._inbox.popleft())
                size += len(batch[-1].texts)
            return batch

    def _serve(self, batch: Sequence[_Request]) -> None:
        started = self._clock.now()
        texts = [text for request in batch for text in request.texts]
        try:
            vectors = contained(lambda: self.driver.embed(texts), is_fatal=False)
        except Exception as problem:  # noqa: BLE001 - a dead thread would leave everybody waiting
            for request in batch:
                self._tell(request, None, problem)
            return
        self._batches += 1
        position = 0
        for request in batch:
            self._tell(request, vectors[position : position + len(request.texts)], None)
            position += len(request.texts)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(
            self._trace, started, self._clock.now(), len(texts), len(batch)
        )

    def _tell(self, request: _Request, vectors: Vectors | None, problem: Exception | None) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(settle, request.done, vectors, problem)

    def _trace(self, started_s: float, ended_s: float, texts: int, requests: int) -> None:
        self._tracer.span(
            "embed",
            "device",
            started_s=started_s,
            ended_s=ended_s,
            pid=0,
            track=self.name,
            args={"texts": texts, "requests": requests},
        )
