"""Notes in the database: inserting, selecting, filtering and deleting rows.

Owns the SQL over the tables of `database.py`. Every function takes the connection that its caller
holds, inside the caller's transaction; nothing here commits, locks or knows FAISS.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Hit, NamespaceStat
from llmos.syscalls.values import JsonObject, JsonValue

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]
    Matrix = NDArray[np.float32]

LONG_FACT_CHARACTERS = 200  # longer metadata values are compared by their digest
SQLITE_INTEGER = range(-(2**63), 2**63)


class Row(NamedTuple):
    """A note made ready to insert: checked, in canonical JSON, with its digest."""

    note: Note
    metadata: str
    facts: tuple[tuple[str, str], ...]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Filter:
    """Which notes a call is about. Notes that expired by `now` are never among them."""

    namespaces: Sequence[str]
    now: float
    where: JsonObject
    source: str | None = None
    ids: Sequence[int] | None = None

    def sql(self) -> tuple[str, list[JsonValue]]:
        """A condition on `notes` and its parameters."""
        conditions = [
            "notes.namespace IN (SELECT value FROM json_each(?))",
            "(notes.expires_at IS NULL OR notes.expires_at > ?)",
        ]
        names = [checked_namespace(name) for name in self.namespaces]
        parameters: list[JsonValue] = [json.dumps(names), self.now]
        if self.source is not None:
            conditions.append("notes.source = ?")
            parameters.append(self.source)
        if self.ids is not None:
            conditions.append("notes.id IN (SELECT value FROM json_each(?))")
            parameters.append(json.dumps(list(self.ids)))
        for key, value in _facts(self.where, field="where"):
            conditions.append("notes.id IN (SELECT note FROM facts WHERE key = ? AND value = ?)")
            parameters += [key, value]
        return " AND ".join(conditions), parameters


def checked_namespace(name: str) -> str:
    """The name itself. Raises: SyscallError("invalid") for one that SQLite would confuse.

    Its JSON functions end a text at a NUL, which would make two namespaces one.
    """
    if not name or "\0" in name:
        raise SyscallError("invalid", "a namespace is text without NUL", field="namespace")
    return name


def prepare(namespace: str, note: Note) -> Row:
    """Check a note and write it as it is stored.

    Two notes with the same digest say the same: equal text, namespace, source and metadata.
    Raises: SyscallError("invalid").
    """
    if note.position is not None and note.position not in SQLITE_INTEGER:
        raise SyscallError("invalid", "position needs more than 64 bits", field="position")
    metadata = _canonical(note.metadata, field="metadata")
    identity = json.dumps([checked_namespace(namespace), note.source, note.text, metadata])
    digest = blake2b(identity.encode(), digest_size=16).digest()
    return Row(note, metadata, tuple(_facts(note.metadata, field="metadata")), digest)


def insert(sql: sqlite3.Connection, namespace: str, row: Row, vector: bytes, now: float) -> int:
    """Insert a note that is not there yet; its id."""
    note = row.note
    cursor = sql.execute(
        "INSERT INTO notes (namespace, text, metadata, source, position, created_at, expires_at,"
        " digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            namespace,
            note.text,
            row.metadata,
            note.source,
            note.position,
            now,
            note.expires_at,
            row.digest,
        ),
    )
    inserted = cursor.lastrowid
    sql.execute("INSERT INTO vectors (note, vector) VALUES (?, ?)", (inserted, vector))
    sql.executemany(
        "INSERT INTO facts (note, key, value) VALUES (?, ?, ?)",
        [(inserted, key, value) for key, value in row.facts],
    )
    assert inserted is not None  # an INSERT has just succeeded
    return inserted


def find_duplicate(sql: sqlite3.Connection, row: Row) -> int | None:
    """The id of the note that says the same, made to last as long as the new one would."""
    found = sql.execute("SELECT id FROM notes WHERE digest = ?", (row.digest,)).fetchone()
    if found is None:
        return None
    sql.execute(
        # max() of anything and NULL is NULL: never to expire is longest.
        "UPDATE notes SET expires_at = max(expires_at, ?) WHERE id = ?",
        (row.note.expires_at, found[0]),
    )
    return found[0]


def select_ids(sql: sqlite3.Connection, chosen: Filter) -> Ids:
    """The ids of the notes that pass a filter."""
    condition, parameters = chosen.sql()
    return _ids(sql, f"notes WHERE {condition}", parameters)


def search_text(
    sql: sqlite3.Connection, query: str, chosen: Filter, k: int
) -> list[tuple[int, float]]:
    """The k best of the notes that pass a filter for an FTS5 query, as (id, BM25), best first."""
    condition, parameters = chosen.sql()
    # FTS5 gives a better match a smaller (negative) number.
    return sql.execute(
        "SELECT notes.id, -bm25(notes_text) AS score FROM notes_text"
        " JOIN notes ON notes.id = notes_text.rowid"
        f" WHERE notes_text MATCH ? AND {condition} ORDER BY score DESC, notes.id LIMIT ?",
        (query, *parameters, k),
    ).fetchall()


def fetch(
    sql: sqlite3.Connection, scored: Sequence[tuple[int, float, dict[str, float]]]
) -> list[Hit]:
    """The notes of (id, score, parts) triples, in their order."""
    rows = sql.execute(
        "SELECT id, namespace, text, metadata, source, position, created_at FROM notes"
        " WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps([item for item, _, _ in scored]),),
    )
    by_id = {row[0]: row for row in rows}
    hits: list[Hit] = []
    for item, score, parts in scored:
        _, namespace, text, metadata, source, position, created_at = by_id[item]
        hits.append(
            Hit(
                id=item,
                text=text,
                namespace=namespace,
                score=score,
                parts=parts,
                metadata=json.loads(metadata),
                source=source,
                position=position,
                created_at=created_at,
            )
        )
    return hits


def delete(sql: sqlite3.Connection, ids: Ids) -> None:
    """Delete notes with their vectors, facts and full-text entries."""
    sql.execute(
        "DELETE FROM notes WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps(ids.tolist()),),
    )


def expired(sql: sqlite3.Connection, now: float) -> Ids:
    """The ids of notes that expired by `now`, in any namespace."""
    return _ids(sql, "notes WHERE expires_at <= ?", (now,))


def all_ids(sql: sqlite3.Connection) -> Ids:
    """Every id, sorted."""
    return np.sort(_ids(sql, "notes INDEXED BY notes_by_namespace"))


def last_id(sql: sqlite3.Connection) -> int:
    """The newest id ever given, 0 before the first."""
    found = sql.execute("SELECT seq FROM sqlite_sequence WHERE name = 'notes'").fetchone()
    return found[0] if found else 0


def vectors(
    sql: sqlite3.Connection, ids: Ids, dimensions: int, *, batch: int = 8192
) -> Iterator[tuple[list[int], Matrix]]:
    """The stored vectors of notes, in batches `(ids, (n, dimensions))`.

    Raises: ValueError when one is missing or has another size than it was stored with.
    """
    for start in range(0, len(ids), batch):
        wanted = ids[start : start + batch].tolist()
        rows = sql.execute(
            "SELECT note, vector FROM vectors WHERE note IN (SELECT value FROM json_each(?))"
            " ORDER BY note",
            (json.dumps(wanted),),
        ).fetchall()
        if len(rows) != len(wanted) or any(len(blob) != 4 * dimensions for _, blob in rows):
            raise ValueError("a note has no whole vector")
        matrix = np.frombuffer(b"".join(blob for _, blob in rows), dtype="<f4")
        yield [note for note, _ in rows], matrix.reshape(len(rows), dimensions)


def count_by_namespace(
    sql: sqlite3.Connection, namespaces: Sequence[str] | None, now: float
) -> tuple[NamespaceStat, ...]:
    """How many live notes each namespace has; None is all namespaces."""
    counts = sql.execute(
        "SELECT namespace, count(*) FROM notes WHERE expires_at IS NULL OR expires_at > ?"
        " GROUP BY namespace ORDER BY namespace",
        (now,),
    )
    return tuple(
        NamespaceStat(namespace=namespace, items=items)
        for namespace, items in counts
        if namespaces is None or namespace in namespaces
    )


def _ids(sql: sqlite3.Connection, rows: str, parameters: Sequence[JsonValue] = ()) -> Ids:
    """The ids of a FROM clause, as one text: three times as fast as an object for each row."""
    (text,) = sql.execute(f"SELECT group_concat(id) FROM {rows}", parameters).fetchone()
    return np.fromstring(text or "", dtype=np.int64, sep=",")


def _facts(metadata: JsonObject, *, field: str) -> Iterator[tuple[str, str]]:
    for key, value in metadata.items():
        text = _canonical(value, field=field)
        if len(text) > LONG_FACT_CHARACTERS:
            # No JSON text begins like this, so a digest equals only a digest.
            text = "blake2b:" + blake2b(text.encode(), digest_size=16).hexdigest()
        yield json.dumps(key), text


def _canonical(value: JsonValue, *, field: str) -> str:
    """JSON text that is equal exactly for equal JSON values: 1 and 1.0 are, 1 and true are not."""
    try:
        return json.dumps(
            _whole_numbers(value), sort_keys=True, separators=(",", ":"), allow_nan=False
        )
    except (TypeError, ValueError) as problem:
        raise SyscallError("invalid", f"{field} is not JSON: {problem}", field=field) from problem


def _whole_numbers(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole_numbers(item) for item in value]
    return value
