"""New notes on their way into the indexes that a commit cannot afford.

A note's words, metadata values and digest belong into random places of three large indexes. Entered
with each commit, they were more than half of what it wrote to the log. So a commit leaves them for
later, and one of the next enters many notes at once, in the indexes' own order: words after
`FRESH_WORDS` notes, for FTS5 takes about as long for those as for one, values and digests after
`FRESH_ENTRIES`, so that most pages of the indexes get several. `store.worded` and `store.sorted`
say how far each has come.

Who looks something up looks at the newer notes as well: for values in `facts`, by note
(`schema.py`); for words in an index in memory (`words.py`); for digests here. Functions run inside
their caller's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

V = TypeVar("V")

FRESH_WORDS = 64  # notes; a search by words takes these in within half a millisecond
FRESH_CHARACTERS = 1_000  # a longer text is entered with its commit, since searches would wait
# BM25 counts how many notes have a word. Of so few, some notes more or less would change the ranks.
FEW_WORDED = 1_000
FRESH_ENTRIES = (
    4_096  # notes; a filter's first use looks through their values in a few milliseconds
)
_START_BYTES = 8  # of a digest, as `digests` has them
_ROWS_A_STATEMENT = 500  # SQLite allows 32,766 parameters


class Reached(NamedTuple):
    """The newest note in the index of words, in those of values and digests, and of all."""

    worded: int
    sorted: int
    newest: int


def reached(sql: sqlite3.Connection) -> Reached:
    """How far the indexes have come."""
    found = sql.execute(
        "SELECT worded, sorted, (SELECT seq FROM sqlite_sequence WHERE name = 'notes') FROM store"
    ).fetchone()
    return Reached(found[0], found[1], found[2] or 0)


def settle(sql: sqlite3.Connection, now: Reached, *, has_long: bool = False) -> Reached:
    """Enter fresh notes where enough have come together; with `has_long` their words now.

    `now` is how far the indexes have come; returns how far they have come then.
    """
    fresh_words = now.newest - now.worded
    if fresh_words and (has_long or fresh_words >= FRESH_WORDS or now.worded < FEW_WORDED):
        now = _enter_words(sql, now)
    if now.newest - now.sorted >= FRESH_ENTRIES:
        now = _enter_sorted(sql, now)
    return now


def settle_all(sql: sqlite3.Connection) -> None:
    """Enter all fresh notes."""
    now = reached(sql)
    if now.newest > now.worded:
        _enter_words(sql, now)
    if now.newest > now.sorted:
        _enter_sorted(sql, now)


def _enter_words(sql: sqlite3.Connection, now: Reached) -> Reached:
    sql.execute(
        "INSERT INTO notes_text (rowid, text) SELECT id, text FROM notes WHERE id > ?",
        (now.worded,),
    )
    sql.execute("UPDATE store SET worded = ?", (now.newest,))
    return now._replace(worded=now.newest)


def _enter_sorted(sql: sqlite3.Connection, now: Reached) -> Reached:
    sql.execute(
        "INSERT INTO facts_by_value (key, value, note)"
        " SELECT key, value, note FROM facts WHERE note > ? ORDER BY key, value, note",
        (now.sorted,),
    )
    sql.execute(
        "INSERT INTO digests (start, note) SELECT substr(digest, 1, ?), id FROM notes"
        " WHERE id > ? ORDER BY 1, 2",
        (_START_BYTES, now.sorted),
    )
    sql.execute("UPDATE store SET sorted = ?", (now.newest,))
    return now._replace(sorted=now.newest)


class Digests:
    """Who has a digest: the table for older notes, and for fresh ones a dictionary of this process.

    The dictionary follows the database, whoever wrote it. What is found in either is only a hint
    and compared with the note, so what was deleted does no harm; but after a rollback ids come
    again with other notes, and `clear` must be called. Used by one thread at a time, inside a
    transaction that writes.
    """

    def __init__(self) -> None:
        self._fresh: dict[bytes, list[int]] = {}
        self._from = self._to = 0  # the ids above the one and up to the other are in `_fresh`

    def clear(self) -> None:
        """Forget what was seen: some of it has been undone."""
        self._fresh.clear()
        self._from = self._to = 0

    def add(self, note: int, digest: bytes) -> None:
        """Take in a note that was just inserted; the one after it would be read otherwise."""
        if note == self._to + 1:
            self._fresh.setdefault(digest, []).append(note)
            self._to = note

    def find(
        self, sql: sqlite3.Connection, digests: Sequence[bytes], now: Reached
    ) -> dict[bytes, int]:
        """The current notes that have some digests; the indexes have come as far as `now` says."""
        self._follow(sql, now)
        hints = [note for digest in digests for note in self._fresh.get(digest, ())]
        found: dict[bytes, int] = {}
        for part in _parts([digest[:_START_BYTES] for digest in digests]):
            hints += [
                note
                for (note,) in sql.execute(
                    f"SELECT note FROM digests WHERE start IN ({_marks(part)})", part
                )
            ]
        for some in _parts(hints):
            found.update(
                sql.execute(
                    "SELECT digest, id FROM notes"
                    f" WHERE superseded_by IS NULL AND id IN ({_marks(some)})",
                    some,
                )
            )
        wanted = set(digests)
        return {digest: note for digest, note in found.items() if digest in wanted}

    def _follow(self, sql: sqlite3.Connection, now: Reached) -> None:
        if now.sorted != self._from:
            self._fresh.clear()
            self._from = self._to = now.sorted
        if now.newest == self._to:
            return
        newer: Iterable[tuple[int, bytes]] = sql.execute(
            "SELECT id, digest FROM notes WHERE id > ?", (self._to,)
        )
        for note, digest in newer:
            self._fresh.setdefault(digest, []).append(note)
        self._to = now.newest


def _parts(values: Sequence[V]) -> Iterable[Sequence[V]]:
    return (
        values[start : start + _ROWS_A_STATEMENT]
        for start in range(0, len(values), _ROWS_A_STATEMENT)
    )


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
