"""The embedding device: texts of all agents in shared passes, and nothing computed twice.

What was embedded before comes from the cache (`memory/vector_cache.py`), from memory without any
wait. The rest is computed in the passes that every device that reads texts makes
(`text_device.py`), a query before a load.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmos.drivers.contract import Allocation, EmbeddingInfo, EmbeddingModel
from llmos.kernel.clock import Clock
from llmos.kernel.text_device import TOKEN_CHARS, TextDevice
from llmos.kernel.text_queue import Item, Request, about_tokens
from llmos.kernel.threads import contained
from llmos.kernel.trace import Tracer
from llmos.memory.vector_cache import Vector, VectorCache, key_of
from llmos.syscalls.errors import SyscallError

Role = Literal["query", "document"]
Vectors = list[Vector]


@dataclass(slots=True, eq=False)
class _Request(Request[str, Vector]):
    """Texts to embed, with the keys by which their vectors are kept."""

    keys: Sequence[bytes] = field(default_factory=list[bytes])


class Embedder(TextDevice[EmbeddingModel, _Request]):
    """Public methods are for the event loop.

    `cache` is shared by the embedders that follow each other; None: everything is computed.
    """

    driver_kind = "embedding"
    noun = "embedding device"
    verb = "embed"

    def __init__(
        self,
        name: str,
        open_driver: Callable[[], EmbeddingModel],
        clock: Clock,
        tracer: Tracer,
        cache: VectorCache | None = None,
    ) -> None:
        super().__init__(name, open_driver, clock, tracer)
        self._cache = cache or VectorCache(None, memory_bytes=0, disk_bytes=0)
        self._computed = 0
        self._cached = 0
        self._fresh: dict[bytes, Vector] = {}  # of the last pass

    @property
    def model(self) -> EmbeddingInfo:
        return self.driver.info

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
            return [vector for vector in request.answers if vector is not None]
        return await self._answers(request)

    def _request(self, texts: Sequence[str], role: Role | None, *, is_idle: bool) -> _Request:
        model = self.model
        prefixes = {"query": model.query_prefix, "document": model.document_prefix}
        prefix = "" if role is None else prefixes[role]
        longest = model.max_tokens * TOKEN_CHARS
        whole = [f"{prefix}{text.lstrip()[:longest]}" for text in texts]
        keys = [key_of(model.identity or self.name, text) for text in whole]
        vectors = [self._cache.look(key) for key in keys]
        return _Request(
            texts=whole,
            sizes=[min(about_tokens(text), model.max_tokens) for text in whole],
            answers=vectors,
            done=asyncio.get_running_loop().create_future(),
            is_idle=is_idle,
            missing=deque(place for place, vector in enumerate(vectors) if vector is None),
            keys=keys,
        )

    def allocations(self) -> list[Allocation]:
        if self._driver is None:
            return []
        return [*super().allocations(), Allocation("cache", self._cache.memory_bytes)]

    def counts(self) -> dict[str, int]:
        """Texts that were computed and texts that came from the cache, since the start."""
        return {"computed": self._computed, "cached": self._cached}

    # --- device thread ----------------------------------------------------------------------------

    def _pass_tokens(self, driver: EmbeddingModel) -> int:
        return driver.info.batch_tokens

    def _compute(self, items: Sequence[Item[_Request]]) -> int:
        texts = {item.request.keys[item.place]: item.request.texts[item.place] for item in items}
        known = self._cache.find(texts)
        fresh = self._computed_vectors({k: t for k, t in texts.items() if k not in known})
        for item in items:
            key = item.request.keys[item.place]
            item.request.answers[item.place] = known.get(key) or fresh[key]
        self._cached += len(texts) - len(fresh)
        self._computed += len(fresh)
        self._fresh = fresh
        return len(fresh)

    def _after_pass(self) -> None:
        self._cache.add(self._fresh)

    def _computed_vectors(self, texts: dict[bytes, str]) -> dict[bytes, Vector]:
        if not texts:
            return {}
        vectors = contained(lambda: self.driver.embed(list(texts.values())), is_fatal=False)
        return dict(zip(texts, vectors, strict=True))
