"""Which notes were found lately, for decay: gathered in memory, written in batches.

A search must not wait for a disk. What was gathered since the last batch is lost in a crash, and a
note then fades as if it had been used a little less.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple

BATCH_NOTES = 20_000  # so many different notes are gathered before a search writes them itself
_COUNTED_AT = (
    1024  # uses, which are counted together: one by one takes a search three times as long
)


class Use(NamedTuple):
    """When a note was used last, in seconds since the epoch, and how often since it was written."""

    at: float
    times: int


class Usage:
    """Thread-safe."""

    def __init__(self) -> None:
        self._uses: dict[int, Use] = {}
        self._uncounted: list[tuple[int, float]] = []
        self._lock = Lock()

    @property
    def is_full(self) -> bool:
        return len(self._uses) >= BATCH_NOTES

    def add(self, notes: Iterable[int], now: float) -> None:
        """Count one use of each note."""
        with self._lock:
            self._uncounted += [(note, now) for note in notes]
            if len(self._uncounted) >= _COUNTED_AT:
                self._count()

    def _count(self) -> None:
        for note, at in self._uncounted:
            before = self._uses.get(note)
            self._uses[note] = Use(at, 1 if before is None else before.times + 1)
        self._uncounted.clear()

    @contextmanager
    def batch(self) -> Generator[dict[int, Use]]:
        """What was gathered, to be written in this block; where that fails, it is kept."""
        with self._lock:
            self._count()
            uses, self._uses = self._uses, {}
        try:
            yield uses
        except BaseException:
            self._keep(uses)
            raise

    def _keep(self, uses: dict[int, Use]) -> None:
        with self._lock:
            self._count()
            for note, use in uses.items():
                since = self._uses.get(note)
                self._uses[note] = use if since is None else Use(since.at, since.times + use.times)


def write(sql: sqlite3.Connection, uses: dict[int, Use]) -> None:
    """Add a batch to the table `usage`, but for notes that are gone."""
    sql.executemany(
        "INSERT INTO usage (note, used_at, uses) SELECT id, ?, ? FROM notes WHERE id = ?"
        " ON CONFLICT (note) DO UPDATE SET used_at = max(used_at, excluded.used_at),"
        " uses = uses + excluded.uses",
        [(use.at, use.times, note) for note, use in uses.items()],
    )
