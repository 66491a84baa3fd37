"""The devices that read texts and generate none: the embedding model and the cross-encoder.

Each opens when first needed. While the store's vectors are of an earlier embedding model, that one
is open beside the configured one. All embedding models share one cache, whose keys say whose vector
it is. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llmos.drivers.contract import Allocation
from llmos.kernel.clock import Clock
from llmos.kernel.embedder import Embedder
from llmos.kernel.reranker import Reranker
from llmos.kernel.settings import Settings
from llmos.kernel.trace import Tracer
from llmos.memory.vector_cache import VectorCache
from llmos.memory.vector_model import VectorModel
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import DeviceInfo

CACHE_FILE = "embeddings.db"


class Encoders:
    def __init__(self, settings: Settings, *, clock: Clock, tracer: Tracer) -> None:
        self._embedding = settings.embedding
        self._reranking = settings.reranker
        self._clock = clock
        self._tracer = tracer
        self._embedder: Embedder | None = None
        self._earlier: Embedder | None = None  # of the store's vectors, until they are made anew
        self._reranker: Reranker | None = None
        self._vectors = VectorCache(
            settings.home / CACHE_FILE,
            memory_bytes=self._embedding.cache_bytes if self._embedding else 0,
            disk_bytes=self._embedding.cache_disk_bytes if self._embedding else 0,
        )

    async def embedder(self) -> Embedder:
        """The embedding device, opened if need be.

        Raises: SyscallError("not_available") where none is configured; SyscallError("device").
        """
        setting = self._embedding
        if setting is None:
            raise SyscallError("not_available", "no embedding model is configured")
        if self._embedder is None or self._embedder.is_down:
            self._embedder = Embedder(
                setting.name, setting.open, self._clock, self._tracer, self._vectors
            )
        await self._embedder.start()
        return self._embedder

    async def embedder_of(self, model: VectorModel) -> Embedder:
        """A device with an earlier embedding model, for as long as the store has its vectors.

        Raises: SyscallError when that model cannot be had any more.
        """
        reopen = None if self._embedding is None else self._embedding.reopen
        if reopen is None:
            raise SyscallError("not_available", "no earlier embedding model can be opened")
        name = f"{model.source} (before)"
        known = self._earlier
        if known is None or known.name != name or known.is_down:
            known = Embedder(name, lambda: reopen(model), self._clock, self._tracer, self._vectors)
            self._earlier = known
        await known.start()
        return known

    async def forget_vectors(self) -> None:
        """Forget every computed vector: they tell what the texts were about that a user forgets."""
        await asyncio.to_thread(self._vectors.clear)

    async def rerank(self, query: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers a query, from 0 to 1. Raises: as `reranker`."""
        return await (await self.reranker()).score(query, texts)

    async def reranker(self) -> Reranker:
        """The reranking device, opened if need be.

        Raises: SyscallError("not_available") where none is configured; SyscallError("device").
        """
        setting = self._reranking
        if setting is None:
            raise SyscallError(
                "not_available",
                "rerank: no cross-encoder is configured; name one as [reranker] source in "
                "llmos.toml, or leave rerank out",
                field="rerank",
            )
        self._reranker = self._reranker or Reranker(setting.name, setting.open)
        await self._reranker.start()
        return self._reranker

    def infos(self) -> list[DeviceInfo]:
        """Every configured device of these kinds, opened or not."""
        found = [device.info() for device in self._devices()]
        if self._embedder is None and self._embedding is not None:
            found.append(_closed(self._embedding.name, "embedding"))
        if self._reranker is None and self._reranking is not None:
            found.append(_closed(self._reranking.name, "cross_encoder"))
        return found

    def allocations(self) -> dict[str, list[Allocation]]:
        """The large allocations of each open device, by its name."""
        return {device.name: device.allocations() for device in self._devices()}

    async def stop(self) -> None:
        """Close every device and the cache."""
        for device in self._devices():
            await device.stop()
        self._vectors.close()

    def _devices(self) -> list[Embedder | Reranker]:
        made = (self._embedder, self._earlier, self._reranker)
        return [device for device in made if device is not None]


def _closed(name: str, driver: str) -> DeviceInfo:
    return DeviceInfo(name=name, driver=driver, model=name, state="closed")
