"""Settling a future of the event loop from a device thread's message."""

from __future__ import annotations

import asyncio
from typing import Any


def settle(future: asyncio.Future[Any], result: Any, problem: Exception | None) -> None:
    """Give a future its result or its exception, unless its reader is gone. Event loop only."""
    if future.done():
        return
    if problem is not None:
        future.set_exception(problem)
    else:
        future.set_result(result)
