"""The long-term store and the embedding device when callers die and drivers fail."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.drivers.contract import Allocation, EmbeddingInfo
from llmos.kernel.settings import EmbeddingSetting
from llmos.memory.store import Store
from llmos.syscalls.errors import SyscallError


class Flat:
    """An embedding to which all texts are alike; `before` runs on the device's thread."""

    def __init__(self) -> None:
        self.before: Callable[[], None] = lambda: None

    @property
    def info(self) -> EmbeddingInfo:
        return EmbeddingInfo("flat", "cpu", 4, max_tokens=100, parameters=0)

    def count(self, text: str) -> int:
        return len(text)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.before()
        return [[0.5] * 4 for _ in texts]

    def allocations(self) -> list[Allocation]:
        return []

    def close(self) -> None:
        pass


def test_a_store_is_opened_once_although_who_asked_first_was_killed(
    boot_kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, go_on = threading.Event(), threading.Event()

    async def ask(os: OS) -> int:
        return len(await os.retrieve("anything", mode="lexical"))

    async def scenario() -> None:
        async with boot_kernel(embedding=EmbeddingSetting("flat", 4, Flat)) as kernel:
            opened: list[Store] = []

            def slowly(original: Callable[[], Store] = kernel.library._open_store) -> Store:
                opening.set()
                go_on.wait()
                opened.append(original())
                return opened[-1]

            monkeypatch.setattr(kernel.library, "_open_store", slowly)
            first = await kernel.os.spawn(ask)
            await asyncio.to_thread(opening.wait)
            await kernel.os.signal(first, "KILL")
            second = await kernel.os.spawn(ask)
            await asyncio.sleep(0)
            go_on.set()
            assert await kernel.os.result(second) == 0
            assert len(opened) == 1

    asyncio.run(scenario())


def test_an_embedding_that_fails_in_any_way_fails_its_call_only(boot_kernel: Any) -> None:
    driver = Flat()

    def refuse() -> None:
        raise SyscallError("not_available", "the weights are gone")

    async def scenario() -> None:
        setting = EmbeddingSetting("flat", 4, lambda: driver)
        async with boot_kernel(embedding=setting) as kernel:
            driver.before = refuse
            with pytest.raises(SyscallError, match="weights are gone"):
                await kernel.os.embed(["text"])
            driver.before = lambda: None
            assert len((await kernel.os.embed(["text"])).vectors) == 1
            embedder = await kernel.devices.embedder()
        with pytest.raises(SyscallError, match="closed"):
            await embedder.embed(["too late"])

    asyncio.run(scenario())
