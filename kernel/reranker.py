"""The reranking device: one thread that scores texts against a query.

Like the embedding device it gives way to those that generate. Public methods are for the event
loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from llmos.drivers.contract import Allocation, CrossEncoder, DeviceError
from llmos.kernel.text_device import PRIORITY_STEPS
from llmos.kernel.threads import contained, yield_to_others
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import DeviceInfo


class Reranker:
    """A cross-encoder that opens at its first use, or says why it cannot."""

    def __init__(self, name: str, open_driver: Callable[[], CrossEncoder]) -> None:
        self.name = name
        self._open_driver = open_driver
        self._driver: CrossEncoder | None = None
        self._reason: str | None = None
        self._scored = 0
        self._thread = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix=f"reranker-{name}",
            initializer=yield_to_others,
            initargs=(PRIORITY_STEPS,),
        )

    async def start(self) -> None:
        """Open the device; after a failure the next call tries again.

        Raises: SyscallError("device").
        """
        if self._driver is None:
            try:
                await asyncio.wrap_future(self._thread.submit(self._opened))
            except DeviceError as problem:
                self._reason = str(problem)
                raise SyscallError(
                    "device",
                    f"reranking device {self.name} could not be opened: {problem}",
                    device=self.name,
                ) from problem

    async def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers a query, from 0 to 1. Raises: SyscallError("device")."""
        try:
            return await asyncio.wrap_future(self._thread.submit(self._score, query, list(texts)))
        except DeviceError as problem:
            raise SyscallError(
                "device", f"reranking failed: {problem}", device=self.name
            ) from problem

    async def stop(self) -> None:
        """Close the device once what was asked for is done."""
        await asyncio.to_thread(self._thread.shutdown)
        if self._driver is not None:
            self._driver.close()

    def info(self) -> DeviceInfo:
        """The device as `llmos devices` shows it."""
        state = "ready" if self._driver is not None else "down" if self._reason else "closed"
        return DeviceInfo(
            name=self.name,
            driver="cross_encoder",
            model=self.name,
            state=state,
            reason=self._reason,
            steps=self._scored,
        )

    def allocations(self) -> list[Allocation]:
        return [] if self._driver is None else self._driver.allocations()

    # --- device thread ----------------------------------------------------------------------------

    def _opened(self) -> CrossEncoder:
        if self._driver is None:
            self._driver = contained(self._open_driver, is_fatal=True)
            self._reason = None
        return self._driver

    def _score(self, query: str, texts: list[str]) -> list[float]:
        driver = self._opened()
        scores = contained(lambda: driver.score(query, texts), is_fatal=False)
        self._scored += 1
        return scores
