"""How a training worker gives way to inference.

A low priority is not enough where inference fills all processors: its threads wait for one another
at every layer, so one that is held up by the worker holds up all, and the worker's passes push the
model's weights out of the caches. So while inference has work the two take turns: the worker stands
still, but for one slice of each period, in which inference starts no step. Side by side both would
be slower than one after the other.

Event-loop thread only.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol, Self

PERIOD_S = 0.8  # the slice is the longest that a token waits for the worker
BUSY_SHARE = 0.15  # of each period in which the worker runs while inference has work
LOOK_S = 0.02  # how often it is looked whether inference has work


class Pausable(Protocol):
    """Something that can be made to stand still."""

    @property
    def is_held(self) -> bool:
        """Whether it stands still for another reason, paused or not."""
        ...

    def pause(self, is_paused: bool, /) -> None:
        """Have it stand still, or go on; holding it still for another reason is not undone."""
        ...


class Inference(Protocol):
    """What a worker gives way to."""

    def are_computing(self) -> bool:
        """Whether there is work now."""
        ...

    def resting(self, most_s: float, /) -> AbstractAsyncContextManager[None]:
        """While entered, and `most_s` at most, no step runs."""
        ...


class Yielding:
    """While it is entered, a worker gives way. `inference` None: it never does."""

    def __init__(
        self,
        worker: Pausable,
        inference: Inference | None,
        *,
        period_s: float = PERIOD_S,
        busy_share: float = BUSY_SHARE,
    ) -> None:
        self._worker = worker
        self._inference = inference
        self._run_s = period_s * busy_share
        self._rest_s = period_s - self._run_s
        self._is_paused = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._inference is not None:
            self._task = asyncio.create_task(self._watch(self._inference))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._pause(False)

    async def _watch(self, inference: Inference) -> None:
        while True:
            if not inference.are_computing():
                self._pause(False)
                await asyncio.sleep(LOOK_S)
                continue
            self._pause(True)
            rested_s = 0.0
            while rested_s < self._rest_s and inference.are_computing():
                await asyncio.sleep(LOOK_S)
                rested_s += LOOK_S
            if inference.are_computing() and not self._worker.is_held:
                async with inference.resting(2 * self._run_s):
                    self._pause(False)
                    await asyncio.sleep(self._run_s)
                    self._pause(True)

    def _pause(self, is_paused: bool) -> None:
        if is_paused != self._is_paused:
            self._is_paused = is_paused
            self._worker.pause(is_paused)
