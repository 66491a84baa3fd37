from __future__ import annotations

import asyncio
from collections.abc import Iterator

from llmos.kernel.yielding import Yielding


class Still:
    """Something that notes when it is made to stand still."""

    def __init__(self) -> None:
        self.said: list[bool] = []
        self.changed = asyncio.Event()

    def pause(self, is_paused: bool, /) -> None:
        self.said.append(is_paused)
        self.changed.set()

    async def until(self, count: int) -> None:
        while len(self.said) < count:
            self.changed.clear()
            await self.changed.wait()


def test_while_inference_has_work_a_worker_runs_in_slices_only() -> None:
    async def run() -> list[bool]:
        worker = Still()
        async with Yielding(worker, lambda: True, period_s=0.04, busy_share=0.5):
            await worker.until(6)
            return worker.said[:6]

    assert asyncio.run(run()) == [True, False] * 3


def test_it_goes_on_as_soon_as_inference_has_none() -> None:
    async def run() -> list[bool]:
        answers: Iterator[bool] = iter([True, True, True])
        worker = Still()
        async with Yielding(worker, lambda: next(answers, False), period_s=3600.0):
            await worker.until(2)
            return list(worker.said)

    assert asyncio.run(run()) == [True, False]


def test_a_worker_is_left_running_and_without_inference_never_disturbed() -> None:
    async def run() -> tuple[list[bool], list[bool]]:
        paused, free = Still(), Still()
        async with Yielding(paused, lambda: True, period_s=3600.0):
            await paused.until(1)
        async with Yielding(free, None):
            pass
        return paused.said, free.said

    paused, free = asyncio.run(run())
    assert paused[-1] is False
    assert free == []
