"""The long-term store as the kernel serves it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmos.drivers.contract import Allocation, CrossEncoderInfo, EmbeddingInfo
from llmos.kernel.settings import EmbeddingSetting, RerankerSetting
from llmos.memory.store import Store
from llmos.memory.vector_cache import key_of
from llmos.syscalls.calls import Note


def no_model() -> Any:
    raise AssertionError("nothing is embedded here")


def test_a_store_that_another_kernel_has_open_is_shared(boot_kernel: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        embedding = EmbeddingSetting(name="none", dimensions=8, open=no_model)
        async with boot_kernel(embedding=embedding) as kernel:
            other = Store(tmp_path / "memory", dimensions=8)
            assert (await kernel.os.memory_stat()).items == 0
            other.remember("any", [Note(text="from the other")], [[1.0] * 8])
            assert (await kernel.os.memory_stat()).items == 1
            other.close()
            assert (await kernel.os.memory_stat()).items == 1

    asyncio.run(scenario())


class SharedWords:
    """A reranking by the share of the query's words that a text has."""

    @property
    def info(self) -> CrossEncoderInfo:
        return CrossEncoderInfo("words", "cpu", 100, 0)

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        words = set(query.split())
        return [len(words & set(text.split())) / len(words) for text in texts]

    def allocations(self) -> list[Allocation]:
        return []

    def close(self) -> None:
        pass


class Lengths:
    """An embedding that is one of few directions, by the length of a text."""

    @property
    def info(self) -> EmbeddingInfo:
        return EmbeddingInfo("lengths", "cpu", 8, max_tokens=100, parameters=0, identity="l")

    def count(self, text: str) -> int:
        return len(text)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[float(len(text) % 8 == n) for n in range(8)] for text in texts]

    def allocations(self) -> list[Allocation]:
        return []

    def close(self) -> None:
        pass


def test_a_configured_reranker_orders_the_hits(boot_kernel: Any) -> None:
    async def scenario() -> None:
        embedding = EmbeddingSetting(name="lengths", dimensions=8, open=Lengths)
        reranker = RerankerSetting("words", SharedWords)
        async with boot_kernel(embedding=embedding, reranker=reranker) as kernel:
            await kernel.os.remember(["red and green", "the red door", "the red door opened"])
            hits = await kernel.os.retrieve("red door opened", k=3, rerank=True)
            assert [hit.text for hit in hits] == [
                "the red door opened",
                "the red door",
                "red and green",
            ]
            assert hits[0].parts["rerank"] == 1.0

    asyncio.run(scenario())


def test_what_is_forgotten_is_forgotten_by_the_cache_of_vectors_too(
    boot_kernel: Any, tmp_path: Path
) -> None:
    def is_on_disk(key: bytes) -> bool:
        return any(key in file.read_bytes() for file in tmp_path.glob("embeddings.db*"))

    async def scenario() -> None:
        embedding = EmbeddingSetting(
            name="lengths", dimensions=8, open=Lengths, cache_disk_bytes=1_000_000
        )
        key = key_of("l", "the secret")
        async with boot_kernel(embedding=embedding) as kernel:
            await kernel.os.remember("the secret")
            assert is_on_disk(key)
            (hit,) = await kernel.os.retrieve("the secret")
            await kernel.os.forget(ids=[hit.id])
            assert not is_on_disk(key)

    asyncio.run(scenario())
