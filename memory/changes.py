"""What became of the store since a state that somebody remembers.

Whoever keeps something derived from the notes (a vector index, a filter's set, in this process or
another) asks here what to add and what to take out. Ids only grow, so additions are the ids above
the last one seen; deletions are in the log `changes`, which is cut from time to time: who is too
far behind compares everything.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llmos.memory.notes import as_ids, as_matrix

if TYPE_CHECKING:
    from llmos.memory.filters import Filter
    from llmos.memory.notes import Ids, Matrix

KEPT_CHANGES = 10_000  # for other processes, which may be behind
_FEW = 20_000  # to read so many notes takes as long as to look through an index of a million
_NEVER = float("inf")


class Version(NamedTuple):
    """A state of the store: the newest id ever given, the newest entry of the log of changes, and
    how often all vectors were replaced. Each only grows."""

    last_id: int
    seq: int
    generation: int


class ReadingConnection(sqlite3.Connection):
    """A connection that never writes, and knows which state it saw last.

    `seen` is that state with SQLite's `data_version`, a number that another one's commit changes.
    Source: https://www.sqlite.org/pragma.html#pragma_data_version
    """

    seen: tuple[int, Version] | None = None


def version(sql: sqlite3.Connection) -> Version:
    """The state that this connection sees.

    One that never writes asks SQLite first whether anybody has committed, which takes a fifth of
    the time.
    """
    if not isinstance(sql, ReadingConnection):
        return _read_version(sql)
    # In this order: a commit in between is noticed the next time.
    (commits,) = sql.execute("PRAGMA data_version").fetchone()
    if sql.seen is None or sql.seen[0] != commits:
        sql.seen = commits, _read_version(sql)
    return sql.seen[1]


def _read_version(sql: sqlite3.Connection) -> Version:
    last_id, seq, generation = sql.execute(
        "SELECT (SELECT seq FROM sqlite_sequence WHERE name = 'notes'),"
        " (SELECT seq FROM sqlite_sequence WHERE name = 'changes'), generation FROM store"
    ).fetchone()
    return Version(last_id or 0, seq or 0, generation)


def deleted_between(sql: sqlite3.Connection, since: int, until: int) -> Ids | None:
    """What was deleted after entry `since` up to `until`; None if the log does not go back so far.

    Entries are numbered without gaps, so a cut shows.
    """
    kept, text = sql.execute(
        "SELECT count(*), group_concat(CASE op WHEN 'delete' THEN note END) FROM changes"
        " WHERE seq > ? AND seq <= ?",
        (since, until),
    ).fetchone()
    return as_ids(text) if kept == until - since else None


def trim(sql: sqlite3.Connection, before: int) -> None:
    """Cut the log up to an entry that an index file has seen, but for the newest few."""
    sql.execute("DELETE FROM changes WHERE seq <= ?", (before - KEPT_CHANGES,))


def ids_between(sql: sqlite3.Connection, chosen: Filter, since: int, until: int) -> Ids:
    """The ids above `since` up to `until` of notes that pass the lasting part of a filter."""
    is_few = until - since <= _FEW
    text, parameters = chosen.lasting_sql(by_note=is_few)
    # Few new notes are looked at one by one: an index by what they hold would give all old ones.
    bound, how = ("notes.id", "NOT INDEXED") if is_few else ("+notes.id", "")
    (found,) = sql.execute(
        f"SELECT group_concat(id) FROM notes {how} WHERE {bound} > ? AND {bound} <= ? AND {text}",
        (since, until, *parameters),
    ).fetchone()
    return as_ids(found)


def vectors_between(
    sql: sqlite3.Connection, since: int, until: int, dimensions: int, *, batch: int = 8192
) -> Iterator[tuple[Ids, Matrix]]:
    """The vectors of ids above `since` up to `until` in batches `(ids, (n, dimensions))`.

    Each batch is read by itself, so that no transaction stays open in between.
    Raises: ValueError when one has another size than it was stored with.
    """
    while since < until:
        rows = sql.execute(
            "SELECT note, vector FROM vectors WHERE note > ? AND note <= ? ORDER BY note LIMIT ?",
            (since, until, batch),
        ).fetchall()
        if not rows:
            return
        ids = np.array([note for note, _ in rows], dtype=np.int64)
        yield ids, as_matrix([blob for _, blob in rows], dimensions)
        since = rows[-1][0]


class Hidden(NamedTuple):
    """Notes that nobody may see now, and until when that stays so."""

    ids: Ids
    until: float


def hidden(sql: sqlite3.Connection, now: float, valid_at: float | None) -> Hidden:
    """What has expired by `now`, and what was not valid at a time (None: whenever it was).

    `until` is right for a `valid_at` that is now. Looks only at indexes of notes with such times.
    """
    gone = ["SELECT id FROM notes WHERE expires_at <= ?1"]
    times = ["SELECT min(expires_at) AS time FROM notes WHERE expires_at > ?1"]
    if valid_at is not None:
        gone += [
            "SELECT id FROM notes WHERE valid_to <= ?2",
            "SELECT id FROM notes WHERE valid_from > ?2",
        ]
        times += [
            "SELECT min(valid_to) FROM notes WHERE valid_to > ?2",
            "SELECT min(valid_from) FROM notes WHERE valid_from > ?2",
        ]
    text, until = sql.execute(
        f"SELECT (SELECT group_concat(id) FROM ({' UNION '.join(gone)})),"
        f" (SELECT min(time) FROM ({' UNION ALL '.join(times)}))",
        (now,) if valid_at is None else (now, valid_at),
    ).fetchone()
    return Hidden(as_ids(text), _NEVER if until is None else until)
