"""A store in the test's own folder, on a clock that moves only when told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.memory.store import Store


class Clock:
    """Seconds since the epoch, as a test sets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock, request: pytest.FixtureRequest) -> Iterator[Store]:
    """A new store for vectors of as many `DIMENSIONS` as the test's module names."""
    opened = Store(tmp_path / "memory", dimensions=request.module.DIMENSIONS, clock=clock)
    yield opened
    opened.close()
