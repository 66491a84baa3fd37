"""The embedding device: whose texts share a pass, what is computed twice, and what fails whom."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from llmos.drivers.contract import Allocation, DeviceError, EmbeddingInfo
from llmos.kernel.clock import RealClock
from llmos.kernel.embedder import Embedder
from llmos.kernel.trace import Tracer
from llmos.memory.vector_cache import VectorCache
from llmos.syscalls.errors import SyscallError


class Gated:
    """An embedding that says how long a text is, and waits before its first pass if asked to."""

    def __init__(self, *, is_waiting: bool = False) -> None:
        self.passes: list[list[str]] = []
        self.began = threading.Event()
        self.go = threading.Event()
        if not is_waiting:
            self.go.set()

    @property
    def info(self) -> EmbeddingInfo:
        return EmbeddingInfo(
            "gated",
            "cpu",
            2,
            max_tokens=100,
            parameters=0,
            batch_tokens=200,
            identity="gated",
            query_prefix="query: ",
            document_prefix="passage: ",
        )

    def count(self, text: str) -> int:
        return len(text.split())

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.passes.append(list(texts))
        self.began.set()
        assert self.go.wait(10)
        if "poison" in texts:
            raise DeviceError("the text is poison")
        if "fatal" in texts:
            raise DeviceError("the device burns", is_fatal=True)
        return [[float(len(text)), 1.0] for text in texts]

    def allocations(self) -> list[Allocation]:
        return []

    def close(self) -> None:
        pass


@asynccontextmanager
async def opened(driver: Gated, cache: VectorCache | None = None) -> AsyncIterator[Embedder]:
    clock = RealClock()
    embedder = Embedder("gated", lambda: driver, clock, Tracer(clock, capacity=100), cache)
    await embedder.start()
    try:
        yield embedder
    finally:
        driver.go.set()
        await embedder.stop()


def in_memory() -> VectorCache:
    return VectorCache(None, memory_bytes=100_000, disk_bytes=0)


def test_queries_take_turns_with_loads_that_came_first_and_texts_of_all_share_passes() -> None:
    async def scenario() -> None:
        driver = Gated(is_waiting=True)
        async with opened(driver) as embedder:
            first = asyncio.ensure_future(embedder.embed(["first"]))
            assert await asyncio.to_thread(driver.began.wait, 10)
            loads = [
                asyncio.ensure_future(embedder.embed([f"{name} {n}" for n in range(60)]))
                for name in ("load-a", "load-b")
            ]
            queries = [asyncio.ensure_future(embedder.embed([f"query {n}"])) for n in range(2)]
            await asyncio.sleep(0)
            driver.go.set()
            await asyncio.gather(first, *loads, *queries)
        assert {"load-a", "load-b"} == {text.split()[0] for text in driver.passes[1]}
        assert driver.passes[2] == ["query 0", "query 1"]
        assert len(driver.passes) > 3

    asyncio.run(scenario())


def test_what_runs_in_idle_time_comes_last() -> None:
    async def scenario() -> None:
        driver = Gated(is_waiting=True)
        async with opened(driver) as embedder:
            first = asyncio.ensure_future(embedder.embed(["first"]))
            assert await asyncio.to_thread(driver.began.wait, 10)
            idle = asyncio.ensure_future(embedder.embed(["idle"], is_idle=True))
            load = asyncio.ensure_future(embedder.embed([f"load {n}" for n in range(150)]))
            await asyncio.sleep(0)
            driver.go.set()
            await asyncio.gather(first, idle, load)
        assert driver.passes[-1] == ["idle"]
        assert len(driver.passes) > 3

    asyncio.run(scenario())


def test_a_text_is_computed_once_and_then_comes_from_the_cache() -> None:
    async def scenario() -> None:
        driver = Gated()
        async with opened(driver, in_memory()) as embedder:
            one = await embedder.embed(["same", "same", "other"])
            two = await embedder.embed(["other", "same"])
            assert one == [[4.0, 1.0], [4.0, 1.0], [5.0, 1.0]]
            assert two == [[5.0, 1.0], [4.0, 1.0]]
            assert embedder.counts()["computed"] == 2
        assert sorted(text for one in driver.passes for text in one) == ["other", "same"]

    asyncio.run(scenario())


def test_a_query_and_a_document_get_what_the_model_wants_before_them() -> None:
    async def scenario() -> None:
        driver = Gated()
        async with opened(driver, in_memory()) as embedder:
            await embedder.embed(["x"])
            await embedder.embed(["x"], role="query")
            await embedder.embed(["x"], role="document")
        assert driver.passes == [["x"], ["query: x"], ["passage: x"]]

    asyncio.run(scenario())


def test_a_text_that_cannot_be_embedded_fails_its_own_caller_only() -> None:
    async def scenario() -> None:
        driver = Gated(is_waiting=True)
        async with opened(driver) as embedder:
            first = asyncio.ensure_future(embedder.embed(["first"]))
            assert await asyncio.to_thread(driver.began.wait, 10)
            good = asyncio.ensure_future(embedder.embed(["good"]))
            bad = asyncio.ensure_future(embedder.embed(["poison"]))
            await asyncio.sleep(0)
            driver.go.set()
            assert await good == [[4.0, 1.0]]
            with pytest.raises(SyscallError, match="poison"):
                await bad
            await first
            assert await embedder.embed(["again"]) == [[5.0, 1.0]]

    asyncio.run(scenario())


def test_a_fatal_failure_takes_the_device_down_and_answers_everybody() -> None:
    async def scenario() -> None:
        async with opened(Gated()) as embedder:
            with pytest.raises(SyscallError, match="burns"):
                await embedder.embed(["fatal"])
            assert embedder.is_down
            with pytest.raises(SyscallError, match="is down") as refusal:
                await embedder.embed(["more"])
            assert refusal.value.code == "device"

    asyncio.run(scenario())


@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_blank_text_is_refused_by_its_place(blank: str) -> None:
    async def scenario() -> None:
        async with opened(Gated()) as embedder:
            with pytest.raises(SyscallError) as refusal:
                await embedder.embed(["full", blank])
            assert refusal.value.fields["field"] == "texts.1"

    asyncio.run(scenario())


def test_what_nobody_waits_for_any_more_is_not_computed() -> None:
    async def scenario() -> None:
        driver = Gated(is_waiting=True)
        async with opened(driver) as embedder:
            first = asyncio.ensure_future(embedder.embed(["first"]))
            assert await asyncio.to_thread(driver.began.wait, 10)
            gone = asyncio.ensure_future(embedder.embed(["gone"]))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.wait((gone,))
            driver.go.set()
            await first
            await embedder.embed(["last"])
        assert driver.passes == [["first"], ["last"]]

    asyncio.run(scenario())
