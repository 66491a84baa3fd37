"""The embedding device: one thread that batches the texts of all agents.

What was embedded before comes from the cache (`memory/vector_cache.py`), from memory without any
wait. The rest is computed in passes that `embedding_queue.py` makes up: texts of all agents, sorted
by length, a query before a load. While one pass is computed the next ones gather, so agents that
embed at the same time share a pass without anybody waiting on purpose. The thread gives way to
those that generate, whose every step waits for its slowest thread (decision 13).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from llmos.drivers.contract import Allocation, DeviceError, EmbeddingInfo, EmbeddingModel
from llmos.kernel.clock import Clock
from llmos.kernel.embedding_queue import EmbeddingQueue, Item, Request, Vectors
from llmos.kernel.threads import contained, settle, yield_to_others
from llmos.kernel.trace import Tracer
from llmos.memory.vector_cache import Vector, VectorCache, key_of
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import DeviceInfo

Role = Literal["query", "document"]

PRIORITY_STEPS = 10
# Where a text is cut before it is hashed, in characters for each token of the model's window.
TOKEN_CHARS = 64


class Embedder:
    """Public methods are for the event loop.

    `cache` is shared by the embedders that follow each other; None: everything is computed.
    """

    def __init__(
        self,
        name: str,
        open_driver: Callable[[], EmbeddingModel],
        clock: Clock,
        tracer: Tracer,
        cache: VectorCache | None = None,
    ) -> None:
        self.name = name
        self.is_down = False
        self.reason: str | None = None
        self._open_driver = open_driver
        self._clock = clock
        self._tracer = tracer
        self._cache = cache or VectorCache(None, memory_bytes=0, disk_bytes=0)
        self._driver: EmbeddingModel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: asyncio.Future[None] | None = None
        self._thread: threading.Thread | None = None
        self._queue: EmbeddingQueue | None = None
        self._wake = threading.Condition()
        self._is_closing = False
        self._passes = 0
        self._computed = 0
        self._cached = 0

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

    async def embed(
        self, texts: Sequence[str], *, role: Role | None = None, is_idle: bool = False
    ) -> Vectors:
        """One unit-length vector a text.

        `role` puts what the model wants before a query or a document in front of each. `is_idle`
        has all other texts computed first.
        Raises: SyscallError("invalid") for a blank text; SyscallError("device").
        """
        for place, text in enumerate(texts):
            if not text or text.isspace():
                raise SyscallError(
                    "invalid",
                    f"texts.{place}: it is blank, so there is no meaning to embed",
                    field=f"texts.{place}",
                )
        request = self._request(texts, role, is_idle=is_idle)
        self._cached += len(texts) - len(request.missing)
        if not request.missing:
            return [vector for vector in request.vectors if vector is not None]
        with self._wake:
            if self._is_closing or self.is_down:
                why = "was closed" if self._is_closing else f"is down: {self.reason}"
                raise SyscallError(
                    "device", f"embedding device {self.name} {why}", device=self.name
                )
            self._texts.push(request)
            self._wake.notify()
        try:
            return await request.done
        except DeviceError as problem:
            raise SyscallError(
                "device", f"embedding failed: {problem}", device=self.name
            ) from problem

    def _request(self, texts: Sequence[str], role: Role | None, *, is_idle: bool) -> Request:
        model = self.model
        prefixes = {"query": model.query_prefix, "document": model.document_prefix}
        prefix = "" if role is None else prefixes[role]
        longest = model.max_tokens * TOKEN_CHARS
        whole = [f"{prefix}{text.lstrip()[:longest]}" for text in texts]
        keys = [key_of(model.identity or self.name, text) for text in whole]
        vectors = [self._cache.look(key) for key in keys]
        return Request(
            texts=whole,
            keys=keys,
            vectors=vectors,
            done=asyncio.get_running_loop().create_future(),
            is_idle=is_idle,
            missing=deque(place for place, vector in enumerate(vectors) if vector is None),
        )

    @property
    def _texts(self) -> EmbeddingQueue:
        assert self._queue is not None, "texts are queued once the device is open"
        return self._queue

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
            driver="embedding",
            model=self.name,
            state="down" if self.is_down else "ready" if is_open else "opening",
            reason=self.reason,
            waiting=waiting,
            steps=self._passes,
        )

    def allocations(self) -> list[Allocation]:
        if self._driver is None:
            return []
        return [*self._driver.allocations(), Allocation("cache", self._cache.memory_bytes)]

    def counts(self) -> dict[str, int]:
        """Texts that were computed and texts that came from the cache, since the start."""
        return {"computed": self._computed, "cached": self._cached}

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
        info = self._driver.info
        self._queue = EmbeddingQueue(pass_tokens=info.batch_tokens, max_tokens=info.max_tokens)
        self._loop.call_soon_threadsafe(settle, self._opened, None, None)
        while items := self._next_pass():
            self._serve(items)
        self._driver.close()

    def _next_pass(self) -> list[Item]:
        """The texts of the next pass, waiting for some; none when closing or down."""
        with self._wake:
            while not (self._is_closing or self.is_down):
                if items := self._texts.next_pass():
                    return items
                self._wake.wait()
            closed = DeviceError(self.reason or "the device was closed")
            for request in self._texts.waiting():
                self._tell(request, closed)
            return []

    def _serve(self, items: Sequence[Item]) -> None:
        """Give each text its vector, and those whose last it was their answer."""
        started = self._clock.now()
        items = [item for item in items if not item.request.is_gone]
        texts = {item.key: item.text for item in items}
        try:
            known = self._cache.find(texts)
            fresh = self._computed_vectors({k: t for k, t in texts.items() if k not in known})
        except Exception as problem:  # noqa: BLE001 - a dead thread would leave everybody waiting
            self._fail(items, problem)
            return
        for item in items:
            vector = known.get(item.key) or fresh[item.key]
            item.request.vectors[item.place] = vector
        for request in dict.fromkeys(item.request for item in items):
            if all(vector is not None for vector in request.vectors):
                self._tell(request, None)
        self._cached += len(texts) - len(fresh)
        if fresh:
            self._passes += 1
            self._computed += len(fresh)
            self._cache.add(fresh)
            assert self._loop is not None
            requests = len({id(item.request) for item in items})
            self._loop.call_soon_threadsafe(
                self._trace, started, self._clock.now(), len(fresh), requests
            )

    def _computed_vectors(self, texts: dict[bytes, str]) -> dict[bytes, Vector]:
        if not texts:
            return {}
        vectors = contained(lambda: self.driver.embed(list(texts.values())), is_fatal=False)
        return dict(zip(texts, vectors, strict=True))

    def _fail(self, items: Sequence[Item], problem: Exception) -> None:
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

    def _tell(self, request: Request, problem: Exception | None) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(settle, request.done, request.vectors, problem)

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
