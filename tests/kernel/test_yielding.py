from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager

from llmos.kernel.yielding import Yielding


class Still:
    """Something that notes when it is made to stand still."""

    is_held = False

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


class Inference:
    """What answers whether it has work, and notes when it is made to rest."""

    def __init__(self, answer: Callable[[], bool]) -> None:
        self.are_computing = answer
        self.is_resting = self.has_rested = False

    @asynccontextmanager
    async def resting(self, most_s: float, /) -> AsyncGenerator[None]:
        self.is_resting = self.has_rested = True
        yield
        self.is_resting = False


def test_while_inference_has_work_a_worker_runs_in_slices_only() -> None:
    async def run() -> list[bool]:
        worker = Still()
        async with Yielding(worker, Inference(lambda: True), period_s=0.04, busy_share=0.5):
            await worker.until(6)
            return worker.said[:6]

    assert asyncio.run(run()) == [True, False] * 3


def test_it_goes_on_as_soon_as_inference_has_none() -> None:
    async def run() -> list[bool]:
        answers: Iterator[bool] = iter([True, True, True])
        worker = Still()
        async with Yielding(worker, Inference(lambda: next(answers, False)), period_s=3600.0):
            await worker.until(2)
            return list(worker.said)

    assert asyncio.run(run()) == [True, False]


def test_a_worker_is_left_running_and_without_inference_never_disturbed() -> None:
    async def run() -> tuple[list[bool], list[bool]]:
        paused, free = Still(), Still()
        async with Yielding(paused, Inference(lambda: True), period_s=3600.0):
            await paused.until(1)
        async with Yielding(free, None):
            pass
        return paused.said, free.said

    paused, free = asyncio.run(run())
    assert paused[-1] is False
    assert free == []


def test_worker_and_inference_take_turns() -> None:
    class Watching(Still):
        def __init__(self, inference: Inference) -> None:
            super().__init__()
            self.inference = inference
            self.was_resting: list[bool] = []

        def pause(self, is_paused: bool, /) -> None:
            self.was_resting.append(self.inference.is_resting)
            super().pause(is_paused)

    async def run() -> tuple[list[bool], list[bool]]:
        inference = Inference(lambda: True)
        worker = Watching(inference)
        async with Yielding(worker, inference, period_s=0.04, busy_share=0.5):
            await worker.until(6)
            return worker.said[:6], worker.was_resting[:6]

    said, was_resting = asyncio.run(run())
    assert said == [True, False] * 3
    assert was_resting == [False, True, True, True, True, True]


def test_inference_does_not_rest_for_a_worker_that_is_held() -> None:
    async def run() -> bool:
        answers = iter([True] * 20)
        inference = Inference(lambda: next(answers, False))
        worker = Still()
        worker.is_held = True
        async with Yielding(worker, inference, period_s=0.04, busy_share=0.5):
            await worker.until(2)
        return inference.has_rested

    assert asyncio.run(run()) is False
