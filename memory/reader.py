"""What a search may ask of the store, at one moment.

The ground that `search.py` stands on: nearest vectors, matching words, and notes by id. A reader
belongs to one thread and one call; several read at once, and none waits for a writer.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from llmos.memory import notes as rows
from llmos.memory import words
from llmos.memory.filters import Filter
from llmos.memory.notes import NoteRow

if TYPE_CHECKING:
    from llmos.memory.notes import Matrix
    from llmos.memory.words import FreshWords

Nearest = Callable[[sqlite3.Connection, "Matrix", Filter, int], list[tuple[int, float]]]


class Reader:
    """The store as one search sees it. `now` is the time that it began."""

    def __init__(
        self,
        sql: sqlite3.Connection,
        *,
        nearest: Nearest,
        fresh: FreshWords,
        dimensions: int,
        now: float,
    ) -> None:
        self.sql = sql
        self.dimensions = dimensions
        self.now = now
        self._nearest = nearest
        self._fresh = fresh

    def nearest(self, unit: Matrix, chosen: Filter, k: int) -> list[tuple[int, float]]:
        """The k notes that pass a filter with the highest cosine to a unit vector, best first.

        k of them if that many pass the filter.
        """
        return self._nearest(self.sql, unit, chosen, k)

    def matching(self, terms: Sequence[str], chosen: Filter, k: int) -> list[tuple[int, float]]:
        """The k notes that pass a filter with the highest BM25 for any of some words."""
        return words.search(self.sql, self._fresh, terms, chosen, k)

    def rarest(self, terms: Sequence[str], most: int) -> list[str]:
        """Those of some words that the fewest notes have, so many that `most` notes match or fewer.

        At least the rarest one; in a store that has no more than `most` notes all of them.
        """
        return words.rarest(self.sql, terms, most)

    def notes(self, ids: Sequence[int]) -> dict[int, NoteRow]:
        """Those of the notes that are still there, by id, in the order asked for."""
        return rows.fetch(self.sql, ids)

    def vectors(self, ids: Sequence[int]) -> Matrix:
        """The unit vectors `(len(ids), dimensions)` of notes, in the order asked for.

        Raises: KeyError for a note that is gone.
        """
        found: dict[int, Matrix] = {}
        for some, matrix in rows.vectors(self.sql, sorted(set(ids)), self.dimensions):
            found.update(zip(some, matrix, strict=True))
        if not ids:
            return np.empty((0, self.dimensions), dtype=np.float32)
        return np.stack([found[item] for item in ids])

    def vectors_there(self, ids: Sequence[int]) -> dict[int, Matrix]:
        """The unit vectors `(dimensions,)` of those of the notes that are still there, by id."""
        rows_there = self.sql.execute(
            "SELECT note, vector FROM vectors WHERE note IN (SELECT value FROM json_each(?))",
            (json.dumps(list(ids)),),
        ).fetchall()
        matrix = rows.as_matrix([blob for _, blob in rows_there], self.dimensions)
        return dict(zip([note for note, _ in rows_there], matrix, strict=True))
