"""Notes in the database: inserting, selecting and deleting rows.

Owns the SQL over the tables of `schema.py`. Every function takes the connection that its caller
holds, inside the caller's transaction; nothing here commits, locks or knows FAISS.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic_core import from_json

from llmos.memory.conditions import entries
from llmos.memory.filters import Filter, checked_namespace
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import NamespaceStat
from llmos.syscalls.values import JsonObject, JsonValue

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]
    Matrix = NDArray[np.float32]

MOST_TEXT_CHARACTERS = 1_000_000  # an embedding sees the first few thousand at most
SQLITE_INTEGER = range(-(2**63), 2**63)
_ROWS_A_STATEMENT = 500  # SQLite allows 32,766 parameters
_FEW = 32  # so many ids are bound one by one, more as one JSON list


class Row(NamedTuple):
    """A note made ready to insert: checked, in canonical JSON, with its digest."""

    note: Note
    metadata: str
    facts: Sequence[tuple[str, str]]
    digest: bytes


class NoteRow(NamedTuple):
    """A note as it is stored. Times are seconds since the epoch."""

    id: int
    namespace: str
    owner: str | None
    text: str
    metadata: JsonObject
    source: str | None
    position: int | None
    kind: str
    created_at: float
    expires_at: float | None
    valid_from: float | None
    valid_to: float | None
    superseded_by: int | None
    importance: float
    parent: int | None


_COLUMNS = ", ".join(f"notes.{name}" for name in NoteRow._fields)


def unfit(text: str) -> str | None:
    """What is wrong with a note's text, if anything."""
    if not text.strip():
        return "it is blank"
    if len(text) > MOST_TEXT_CHARACTERS:
        return (
            f"it has {len(text):,} characters, a note holds {MOST_TEXT_CHARACTERS:,}; remember it "
            "in parts, as `ingest` and `llmos memory add` do"
        )
    return None


def prepare(namespace: str, note: Note) -> Row:
    """Check a note and write it as it is stored.

    Two notes with the same digest say the same: equal text, namespace, source, metadata,
    and kind, and where they have a fact, it and since when it is so.
    Raises: SyscallError("invalid").
    """
    if problem := unfit(note.text):
        raise SyscallError("invalid", f"a note's text: {problem}", field="text")
    if note.position is not None and note.position not in SQLITE_INTEGER:
        raise SyscallError("invalid", "position needs more than 64 bits", field="position")
    metadata, facts = entries(note.metadata)
    return Row(note, metadata, facts, _digest(checked_namespace(namespace), note, metadata))


def _digest(namespace: str, note: Note, metadata: str) -> bytes:
    # Version 1, which knew one kind, has digests without it.
    told = [namespace, note.source, note.text, metadata]
    if note.kind != "episodic":
        told.append(note.kind)
    if note.fact is not None:
        told += (note.fact.subject, note.fact.relation, note.fact.object)
    identity = ["null" if part is None else encode_basestring_ascii(part) for part in told]
    if note.fact is not None:
        identity.append(json.dumps(note.valid_from))
    return blake2b(f"[{', '.join(identity)}]".encode(), digest_size=16).digest()


class New(NamedTuple):
    """A note that is not there yet, with the id that it will have, and its vector."""

    id: int
    row: Row
    vector: bytes


def insert(
    sql: sqlite3.Connection,
    namespace: str,
    new: Sequence[New],
    now: float,
    *,
    owner: str | None = None,
) -> None:
    """Insert notes, many with one statement; `fresh.py` enters their words and values."""
    notes = [
        (
            one.id,
            namespace,
            owner,
            one.row.note.text,
            one.row.metadata,
            one.row.note.source,
            one.row.note.position,
            one.row.note.kind,
            now,
            one.row.note.expires_at,
            # A fact is so since it is told, unless it says since when.
            now
            if one.row.note.fact is not None and one.row.note.valid_from is None
            else one.row.note.valid_from,
            one.row.note.importance,
            one.row.note.parent,
            one.row.digest,
        )
        for one in new
    ]
    _insert_many(
        sql,
        "notes (id, namespace, owner, text, metadata, source, position, kind, created_at,"
        " expires_at, valid_from, importance, parent, digest)",
        notes,
    )
    _insert_many(sql, "vectors (note, vector)", [(one.id, one.vector) for one in new])
    facts = [(one.id, key, value) for one in new for key, value in one.row.facts]
    _insert_many(sql, "facts (note, key, value)", facts)


def _insert_many(
    sql: sqlite3.Connection, into: str, values: Sequence[tuple[JsonValue, ...]]
) -> None:
    for start in range(0, len(values), _ROWS_A_STATEMENT):
        part = values[start : start + _ROWS_A_STATEMENT]
        row = f"({', '.join('?' * len(part[0]))})"
        sql.execute(
            f"INSERT INTO {into} VALUES {', '.join([row] * len(part))}",
            list(chain.from_iterable(part)),
        )


def select_ids(sql: sqlite3.Connection, chosen: Filter) -> Ids:
    """The ids of the notes that pass a filter."""
    condition, parameters = chosen.sql()
    return _ids(sql, f"notes WHERE {condition}", parameters)


def fetch(sql: sqlite3.Connection, ids: Sequence[int]) -> dict[int, NoteRow]:
    """Those of the notes that are still there, by id, in the order asked for."""
    among, parameters = _among(ids)
    rows = sql.execute(f"SELECT {_COLUMNS} FROM notes WHERE id IN {among}", parameters)
    found = {row[0]: row for row in rows}
    return {
        item: NoteRow._make((*row[:4], from_json(row[4]), *row[5:]))
        for item in ids
        if (row := found.get(item)) is not None
    }


def delete(sql: sqlite3.Connection, ids: Ids) -> None:
    """Delete notes with their vectors, facts, edges and full-text entries."""
    if len(ids):
        sql.execute(
            "DELETE FROM notes WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(ids.tolist()),),
        )


def sources(sql: sqlite3.Connection, ids: Ids) -> list[tuple[str, str]]:
    """The sources of some notes, each once, with their namespaces."""
    return sql.execute(
        "SELECT DISTINCT namespace, source FROM notes"
        " WHERE id IN (SELECT value FROM json_each(?)) AND source IS NOT NULL",
        (json.dumps(ids.tolist()),),
    ).fetchall()


def expired(sql: sqlite3.Connection, now: float) -> Ids:
    """The ids of notes that expired by `now`, in any namespace."""
    return _ids(sql, "notes WHERE expires_at <= ?", (now,))


def all_ids(sql: sqlite3.Connection) -> Ids:
    """Every id, sorted."""
    return np.sort(_ids(sql, "notes INDEXED BY notes_by_namespace"))


def vectors(
    sql: sqlite3.Connection, ids: Ids | Sequence[int], dimensions: int, *, batch: int = 8192
) -> Iterator[tuple[list[int], Matrix]]:
    """The stored vectors of notes, in batches `(ids, (n, dimensions))`, by id.

    Raises: ValueError when one is missing or has another size than it was stored with.
    """
    for start in range(0, len(ids), batch):
        wanted = ids[start : start + batch]
        among, parameters = _among([int(item) for item in wanted])
        rows = sql.execute(
            f"SELECT note, vector FROM vectors WHERE note IN {among} ORDER BY note", parameters
        ).fetchall()
        if len(rows) != len(wanted):
            raise ValueError("a note has no whole vector")
        yield [note for note, _ in rows], as_matrix([blob for _, blob in rows], dimensions)


def vectors_of(
    sql: sqlite3.Connection, ids: Ids, dimensions: int, *, batch: int = 8192
) -> tuple[Ids, Matrix]:
    """The vectors of those of the notes that are still there, by id, with their ids.

    Raises: ValueError for one of another size than it was stored with.
    """
    found: list[tuple[int, bytes]] = []
    for start in range(0, len(ids), batch):
        among, parameters = _among(ids[start : start + batch].tolist())
        found += sql.execute(f"SELECT note, vector FROM vectors WHERE note IN {among}", parameters)
    found.sort()
    kept = np.array([note for note, _ in found], dtype=np.int64)
    return kept, as_matrix([blob for _, blob in found], dimensions)


def as_matrix(blobs: Sequence[bytes], dimensions: int) -> Matrix:
    """Stored vectors as a matrix. Raises: ValueError for one of another size."""
    if any(len(blob) != 4 * dimensions for blob in blobs):
        raise ValueError("a note has no whole vector")
    return np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(blobs), dimensions)


def count(sql: sqlite3.Connection) -> int:
    """How many notes there are, whatever their state."""
    return sql.execute("SELECT count(*) FROM notes").fetchone()[0]


def namespaces(sql: sqlite3.Connection) -> list[str]:
    """Every namespace that has a note, sorted; takes one look at an index for each."""
    rows = sql.execute(
        "WITH RECURSIVE each_one (name) AS (SELECT min(namespace) FROM notes UNION ALL"
        " SELECT (SELECT min(namespace) FROM notes WHERE namespace > name) FROM each_one"
        " WHERE name IS NOT NULL) SELECT name FROM each_one WHERE name IS NOT NULL"
    )
    return [name for (name,) in rows]


def count_by_namespace(
    sql: sqlite3.Connection, names: Sequence[str] | None, now: float
) -> tuple[NamespaceStat, ...]:
    """How many live notes each namespace has; None is all namespaces."""
    counts = sql.execute("SELECT namespace, count(*) FROM notes GROUP BY namespace")
    gone = dict(
        sql.execute(
            "SELECT namespace, count(*) FROM notes WHERE expires_at <= ? GROUP BY namespace", (now,)
        )
    )
    return tuple(
        NamespaceStat(namespace=name, items=items - gone.get(name, 0))
        for name, items in counts
        if (names is None or name in names) and items > gone.get(name, 0)
    )


def _among(ids: Sequence[int]) -> tuple[str, list[JsonValue]]:
    """`IN` what, for some ids. A few parameters are faster than a JSON list, many are not."""
    if len(ids) <= _FEW:
        return f"({', '.join('?' * len(ids))})", list(ids)
    return "(SELECT value FROM json_each(?))", [json.dumps(list(ids))]


def _ids(sql: sqlite3.Connection, rows: str, parameters: Sequence[JsonValue] = ()) -> Ids:
    (text,) = sql.execute(f"SELECT group_concat(id) FROM {rows}", parameters).fetchone()
    return as_ids(text)


def as_ids(text: str | None) -> Ids:
    """What `group_concat(id)` gives: three times as fast as an object for each row."""
    return np.fromstring(text or "", dtype=np.int64, sep=",")
