"""How a training worker gives way to inference.

A low priority is not enough where inference fills all processors: its threads wait for one another
at every layer, so one that is held up by the worker holds up all, and the worker's passes push the
model's weights out of the caches. So while inference has work the worker runs a short slice of each
period only, and stands still for the rest of it.

Event-loop thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

PERIOD_S = 0.5
BUSY_SHARE = 0.15  # of each period in which the worker runs while inference has work
LOOK_S = 0.02  # how often it is looked whether inference has work


class Pausable(Protocol):
    """Something that can be made to stand still."""

    def pause(self, is_paused: bool, /) -> None:
        """Have it stand still, or go on; holding it still for another reason is not undone."""
        ...


class Yielding:
    """While it is entered, a worker gives way. `is_busy` None: it never does."""

    def __init__(
        self,
        worker: Pausable,
        is_busy: Callable[[], bool] | None,
        *,
        period_s: float = PERIOD_S,
        busy_share: float = BUSY_SHARE,
    ) -> None:
        self._worker = worker
        self._is_busy = is_busy
        self._run_s = period_s * busy_share
        self._rest_s = period_s - self._run_s
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._is_busy is not None:
            self._task = asyncio.create_task(self._watch(self._is_busy))
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
            self._worker.pause(False)

    async def _watch(self, is_busy: Callable[[], bool]) -> None:
        while True:
            if not is_busy():
                await asyncio.sleep(LOOK_S)
                continue
            self._worker.pause(True)
            rested_s = 0.0
            while rested_s < self._rest_s and is_busy():
                await asyncio.sleep(LOOK_S)
                rested_s += LOOK_S
            self._worker.pause(False)
            await asyncio.sleep(self._run_s if is_busy() else 0)
