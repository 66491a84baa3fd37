"""The reranking device: it opens when asked for, and says why it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from llmos.drivers.contract import Allocation, CrossEncoderInfo, DeviceError
from llmos.kernel.reranker import Reranker
from llmos.kernel.settings import RerankerSetting
from llmos.syscalls.errors import SyscallError


class SharedWords:
    """The share of the query's words that a text has."""

    @property
    def info(self) -> CrossEncoderInfo:
        return CrossEncoderInfo("words", "cpu", 100, 0)

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        if query == "bad":
            raise ValueError("no scores")
        words = set(query.split())
        return [len(words & set(text.split())) / len(words) for text in texts]

    def allocations(self) -> list[Allocation]:
        return [Allocation("weights", 1)]

    def close(self) -> None:
        pass


def test_texts_are_scored() -> None:
    async def scenario() -> None:
        reranker = Reranker("words", SharedWords)
        assert reranker.info().state == "closed"
        await reranker.start()
        assert await reranker.score("a b", ["a", "c", "b a"]) == [0.5, 0.0, 1.0]
        with pytest.raises(SyscallError, match="no scores"):
            await reranker.score("bad", ["a"])
        assert reranker.info().state == "ready"
        await reranker.stop()

    asyncio.run(scenario())


def test_a_device_that_cannot_be_opened_says_why_and_may_be_tried_again() -> None:
    async def scenario() -> None:
        problems = [DeviceError("it is not here")]

        def opening() -> SharedWords:
            if problems:
                raise problems.pop()
            return SharedWords()

        reranker = Reranker("words", opening)
        with pytest.raises(SyscallError, match="it is not here") as refusal:
            await reranker.start()
        assert refusal.value.code == "device"
        assert (reranker.info().state, reranker.info().reason) == ("down", "it is not here")
        await reranker.start()
        assert reranker.info().state == "ready"
        await reranker.stop()

    asyncio.run(scenario())


def test_without_a_configured_model_the_error_says_what_to_write(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            with pytest.raises(SyscallError, match=r"\[reranker\]") as refusal:
                await kernel.devices.encoders.reranker()
            assert refusal.value.code == "not_available"

    asyncio.run(scenario())


def test_a_configured_reranker_is_among_the_devices(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(reranker=RerankerSetting("words", SharedWords)) as kernel:
            assert [one.state for one in kernel.devices.infos()] == ["closed"]
            await kernel.devices.encoders.reranker()
            assert [one.driver for one in kernel.devices.infos()] == ["cross_encoder"]
            assert [entry.owner for entry in kernel.devices.ledger()] == ["words"]

    asyncio.run(scenario())
