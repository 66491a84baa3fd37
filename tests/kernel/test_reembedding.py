"""A kernel that starts with another embedding model than its store was made with."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from llmos.drivers.contract import Allocation, EmbeddingInfo
from llmos.kernel.settings import EmbeddingSetting
from llmos.memory.vector_model import VectorModel
from llmos.syscalls.errors import SyscallError

TEXTS = [f"note {n}" for n in range(300)]


class Remainders:
    """An embedding by a text's number: those with the same remainder are alike."""

    def __init__(self, width: int, *, is_held: bool = False) -> None:
        self.width = width
        self.asked: list[str] = []
        self.go = threading.Event()
        if not is_held:
            self.go.set()

    @property
    def info(self) -> EmbeddingInfo:
        return EmbeddingInfo(
            f"by {self.width}", "cpu", self.width, 100, 0, identity=f"by {self.width}"
        )

    def count(self, text: str) -> int:
        return 2

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        assert self.go.wait(10)
        self.asked += texts
        numbers = [int(text.split()[-1]) for text in texts]
        return [[float(n % self.width == place) for place in range(self.width)] for n in numbers]

    def allocations(self) -> list[Allocation]:
        return []

    def close(self) -> None:
        self.go.set()


def setting(
    width: int, *, driver: Remainders | None = None, has_earlier: bool = True
) -> EmbeddingSetting:
    def reopen(model: VectorModel) -> Remainders:
        if not has_earlier:
            raise SyscallError("unknown_model", f"{model.source} was removed")
        return Remainders(int(model.source))

    return EmbeddingSetting(
        name=f"by {width}",
        dimensions=width,
        open=lambda: driver or Remainders(width),
        identify=lambda: VectorModel(identity=f"by {width}", source=str(width)),
        reopen=reopen,
    )


async def remainders(kernel: Any, query: str, by: int, *, k: int = 3) -> set[int]:
    hits = await kernel.os.retrieve(query, k=k, mode="dense", namespaces=["a"])
    return {int(hit.text.split()[-1]) % by for hit in hits}


async def changed(kernel: Any) -> None:
    """Wait until the process that makes the vectors anew is gone."""
    (process,) = [one for one in kernel.table if one.program == "reembed"]
    assert process.task is not None
    await process.task


async def fill(boot_kernel: Any) -> None:
    async with boot_kernel(embedding=setting(4)) as kernel:
        await kernel.os.remember(TEXTS, namespace="a")


def test_reads_and_writes_go_on_with_the_old_model_until_the_new_vectors_are_in_place(
    boot_kernel: Any,
) -> None:
    async def scenario() -> None:
        await fill(boot_kernel)
        new = Remainders(6, is_held=True)
        async with boot_kernel(embedding=setting(6, driver=new)) as kernel:
            assert await remainders(kernel, "query 7", 4) == {3}
            await kernel.os.remember("note 301", namespace="a")
            processes = {one.program: one for one in await kernel.os.ps()}
            assert (processes["reembed"].nice, processes["reembed"].args) == (19, "6")
            assert {one.name for one in kernel.devices.infos()} == {"by 6", "4 (before)"}
            new.go.set()
            await changed(kernel)
            assert await remainders(kernel, "query 7", 6) == {1}
            await kernel.os.remember("note 1003", namespace="a")
            assert await remainders(kernel, "query 3", 6, k=60) >= {3}
            assert "reembed" not in {one.program for one in await kernel.os.ps()}
            assert (await kernel.os.memory_stat()).dimensions == 6
        async with boot_kernel(embedding=setting(6)) as kernel:
            assert await remainders(kernel, "query 7", 6) == {1}
            assert len(kernel.table) == 1

    asyncio.run(scenario())


def test_when_the_old_model_is_gone_words_still_find_and_the_error_says_so(
    boot_kernel: Any,
) -> None:
    async def scenario() -> None:
        await fill(boot_kernel)
        new = Remainders(6, is_held=True)
        async with boot_kernel(embedding=setting(6, driver=new, has_earlier=False)) as kernel:
            with pytest.raises(SyscallError, match=r"was removed.*lexical") as refusal:
                await remainders(kernel, "query 7", 4)
            assert refusal.value.code == "not_available"
            hits = await kernel.os.retrieve("note 77", mode="lexical", namespaces=["a"], k=1)
            assert hits[0].text == "note 77"
            new.go.set()
            await changed(kernel)
            assert await remainders(kernel, "query 7", 6) == {1}

    asyncio.run(scenario())


def test_a_kernel_that_is_stopped_in_the_middle_goes_on_with_the_next_start(
    boot_kernel: Any,
) -> None:
    async def scenario() -> None:
        await fill(boot_kernel)
        async with boot_kernel(embedding=setting(6)) as kernel:
            await remainders(kernel, "query 7", 4)
        async with boot_kernel(embedding=setting(6)) as kernel:
            await remainders(kernel, "query 7", 4)
            if any(one.program == "reembed" for one in kernel.table):
                await changed(kernel)
            assert await remainders(kernel, "query 7", 6) == {1}
            assert (await kernel.os.memory_stat()).items == len(TEXTS)

    asyncio.run(scenario())


def test_the_same_model_changes_nothing(boot_kernel: Any) -> None:
    async def scenario() -> None:
        await fill(boot_kernel)
        async with boot_kernel(embedding=setting(4)) as kernel:
            assert await remainders(kernel, "query 7", 4) == {3}
            assert len(kernel.table) == 1

    asyncio.run(scenario())


def test_the_process_can_be_stopped_continued_and_killed(boot_kernel: Any) -> None:
    async def scenario() -> None:
        await fill(boot_kernel)
        new = Remainders(6, is_held=True)
        async with boot_kernel(embedding=setting(6, driver=new)) as kernel:
            await remainders(kernel, "query 7", 4)
            (process,) = [one for one in kernel.table if one.program == "reembed"]
            await kernel.os.signal(process.pid, "STOP")
            assert process.shown_state == "stopped"
            await kernel.os.signal(process.pid, "CONT")
            await kernel.os.signal(process.pid, "KILL")
            new.go.set()
            assert process.task is not None
            await asyncio.wait((process.task,))
            assert await remainders(kernel, "query 7", 4) == {3}

    asyncio.run(scenario())
