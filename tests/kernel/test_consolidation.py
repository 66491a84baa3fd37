"""The process that uses idle time: when it starts, what it may do, and how far it has read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from llmos.drivers.contract import Allocation, EmbeddingInfo
from llmos.kernel.clock import VirtualClock
from llmos.kernel.consolidation import LOWEST, ConsolidationSetting
from llmos.kernel.settings import EmbeddingSetting
from llmos.memory.dialogues import read_mark
from llmos.syscalls.calls import Note

SETTING = ConsolidationSetting(idle_s=40, every_s=100, tokens=500, wall_s=30)


class Flat:
    """An embedding in which all texts are alike."""

    @property
    def info(self) -> EmbeddingInfo:
        return EmbeddingInfo("flat", "cpu", 4, max_tokens=100, parameters=0)

    def count(self, text: str) -> int:
        return 1

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[1.0, 0.0, 0.0, 0.0] for _ in texts]

    def allocations(self) -> list[Allocation]:
        return []

    def close(self) -> None:
        pass


class Reader:
    """A program `consolidate` that notes what it was given."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.given: list[tuple[str, list[str]]] = []
        self.seen: list[Any] = []
        self.ran = asyncio.Event()

    async def __call__(
        self, os: Any, *, namespace: str, notes: list[dict[str, Any]], whose: str, model: str | None
    ) -> Any:
        self.given.append((namespace, [note["text"] for note in notes]))
        self.seen += [one for one in await os.ps() if one.pid == os.pid]
        self.ran.set()
        return {"is_complete": self.answers.pop(0) if self.answers else True}


def dialogue(*texts: str) -> list[Note]:
    return [Note(text=text, metadata={"role": "user"}) for text in texts]


async def until(clock: VirtualClock, seconds: float) -> None:
    """Let time pass in steps, each after what the last one started has come to rest."""
    for _ in range(int(seconds / 10)):
        clock.advance(10)
        for _ in range(20):
            await asyncio.to_thread(lambda: None)


def booted(
    boot_kernel: Any,
    reader: Reader,
    clock: VirtualClock,
    setting: ConsolidationSetting = SETTING,
) -> Any:
    embedding = EmbeddingSetting(name="flat", dimensions=4, open=Flat)
    return boot_kernel(
        embedding=embedding,
        consolidation=setting,
        programs={"consolidate": reader},
        clock=clock,
    )


def test_in_idle_time_each_namespace_is_read_once_with_little_right(
    boot_kernel: Any, tmp_path: Any
) -> None:
    async def scenario() -> None:
        clock, reader = VirtualClock(), Reader()
        async with booted(boot_kernel, reader, clock) as kernel:
            await kernel.os.remember(dialogue("a1", "a2"), namespace="a")
            await kernel.os.remember(dialogue("b1"), namespace="b")
            await kernel.os.remember("no dialogue", namespace="a")
            await kernel.os.remember(dialogue("own"))  # ends with its process
            assert [one.program for one in await kernel.os.ps()][1:] == ["consolidation"]
            await until(clock, 30)
            assert not reader.given
            await until(clock, 200)
            assert reader.given == [("a", ["a1", "a2"]), ("b", ["b1"])]
            process = reader.seen[0]
            assert process.nice == LOWEST
            assert process.capabilities.write == {"a"}
            assert (process.quota.tokens_out, process.quota.wall_s) == (500, 30)
            await kernel.os.remember(dialogue("a3"), namespace="a")
            await until(clock, 200)
            assert reader.given[2:] == [("a", ["a3"])]
        assert read_mark(tmp_path / "memory") > 0

    asyncio.run(scenario())


class Learner(Reader):
    """A program `consolidate` that keeps what it was given as something learned."""

    async def __call__(
        self, os: Any, *, namespace: str, notes: list[dict[str, Any]], whose: str, model: str | None
    ) -> Any:
        await os.remember(
            [f"learned: {', '.join(note['text'] for note in notes)}"], namespace=namespace
        )
        return await super().__call__(
            os, namespace=namespace, notes=notes, whose=whose, model=model
        )


def test_what_is_learned_from_somebody_is_forgotten_with_what_they_said(boot_kernel: Any) -> None:
    async def scenario() -> None:
        clock, reader = VirtualClock(), Learner()
        patient = ConsolidationSetting(idle_s=40, every_s=100, wall_s=1e6)
        async with booted(boot_kernel, reader, clock, patient) as kernel:
            os = kernel.os
            await os.remember(dialogue("ann 1"), namespace="a", owner="ann")
            await os.remember(dialogue("bob 1"), namespace="a", owner="bob")
            await os.remember(dialogue("ann 2"), namespace="a", owner="ann")
            for _ in range(200):  # what is learned goes to a real disk meanwhile
                if len(reader.given) < 2:
                    await until(clock, 10)
            assert reader.given == [("a", ["ann 1", "ann 2"]), ("a", ["bob 1"])]
            assert await os.forget(owner="ann", namespace="a") == 3
            left = await os.retrieve("x", k=10, mode="dense", namespaces=["a"])
            assert {hit.text for hit in left} == {"bob 1", "learned: bob 1"}

    asyncio.run(scenario())


def test_what_was_not_read_whole_is_read_again(boot_kernel: Any) -> None:
    async def scenario() -> None:
        clock, reader = VirtualClock(), Reader(False, True)
        async with booted(boot_kernel, reader, clock) as kernel:
            await kernel.os.remember(dialogue("a1", "a2"), namespace="a")
            await until(clock, 400)
            assert reader.given == [("a", ["a1", "a2"])] * 2

    asyncio.run(scenario())


def test_a_round_takes_what_its_budget_is_enough_for_and_is_not_stuck_on_one_note(
    boot_kernel: Any,
) -> None:
    async def scenario() -> None:
        clock, reader = VirtualClock(), Reader(False, True, True)
        long, short = "long " * 100, "short " * 10
        async with booted(boot_kernel, reader, clock) as kernel:
            await kernel.os.remember(dialogue(long, f"1 {short}", f"2 {short}"), namespace="a")
            await kernel.os.remember(dialogue(f"3 {short}"), namespace="a")
            await until(clock, 400)
            assert [len(texts) for _, texts in reader.given] == [1, 2, 1]

    asyncio.run(scenario())
