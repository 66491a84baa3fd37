"""The manifest: which files a namespace knows, as they were when they were taken in.

Owns the SQL over `documents`. Every function takes the connection that its caller holds, inside the
caller's transaction. A row is only believed while the store still holds the notes that it counts:
whoever forgets a file's notes need not know of this table.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple


class Known(NamedTuple):
    """A file as it was taken in. `is_whole`: all of its notes are still there."""

    size_bytes: int
    mtime_ns: int
    digest: bytes
    ingested_at: float
    is_whole: bool


class Listed(NamedTuple):
    """A file as it is listed."""

    namespace: str
    path: str
    size_bytes: int
    chunks: int
    ingested_at: float


_HAS_NOTES = (
    "EXISTS (SELECT 1 FROM notes"
    " WHERE notes.namespace = documents.namespace AND notes.source = documents.path)"
)
_NOTES_OF_IT = (
    "(SELECT count(*) FROM notes"
    " WHERE notes.namespace = documents.namespace AND notes.source = documents.path)"
)


def find(sql: sqlite3.Connection, namespace: str, path: str) -> Known | None:
    """What is known of a file."""
    row = sql.execute(
        f"SELECT size, mtime_ns, digest, ingested_at, chunks = {_NOTES_OF_IT} FROM documents"
        " WHERE namespace = ? AND path = ?",
        (namespace, path),
    ).fetchone()
    return None if row is None else Known(*row[:4], is_whole=bool(row[4]))


def put(
    sql: sqlite3.Connection,
    namespace: str,
    path: str,
    *,
    size_bytes: int,
    mtime_ns: int,
    digest: bytes,
    chunks: int | None,
    now: float,
) -> None:
    """Write down that a file was taken in at `now`; `chunks` None: in as many as before."""
    sql.execute(
        "INSERT INTO documents (namespace, path, size, mtime_ns, digest, chunks, ingested_at)"
        " VALUES (?1, ?2, ?3, ?4, ?5, coalesce(?6, 0), ?7)"
        " ON CONFLICT (namespace, path) DO UPDATE SET size = ?3, mtime_ns = ?4, digest = ?5,"
        " chunks = coalesce(?6, chunks), ingested_at = ?7",
        (namespace, path, size_bytes, mtime_ns, digest, chunks, now),
    )


def begin(sql: sqlite3.Connection, namespace: str, path: str) -> None:
    """Write down that a file which was not known is being taken in, before any of its notes are."""
    sql.execute(
        "INSERT INTO documents (namespace, path, size, mtime_ns, digest, chunks, ingested_at)"
        " VALUES (?, ?, 0, 0, x'', -1, 0) ON CONFLICT DO NOTHING",
        (namespace, path),
    )


def place(sql: sqlite3.Connection, positions: Mapping[int, int]) -> None:
    """Give notes that were there before the places in their source that they have now."""
    sql.executemany(
        "UPDATE notes SET position = ?1 WHERE id = ?2 AND position IS NOT ?1",
        [(position, note) for note, position in positions.items()],
    )


def drop(sql: sqlite3.Connection, namespace: str, path: str) -> None:
    """Forget that a file was taken in."""
    sql.execute("DELETE FROM documents WHERE namespace = ? AND path = ?", (namespace, path))


def drop_forgotten(sql: sqlite3.Connection) -> None:
    """Drop the rows of files whose notes somebody forgot; their paths may be private too."""
    sql.execute(f"DELETE FROM documents WHERE NOT {_HAS_NOTES}")


def drop_if_forgotten(sql: sqlite3.Connection, files: Iterable[tuple[str, str]]) -> None:
    """Drop the rows of some files, by namespace and path, of which no note is left."""
    sql.executemany(
        f"DELETE FROM documents WHERE namespace = ? AND path = ? AND NOT {_HAS_NOTES}", files
    )


def below(sql: sqlite3.Connection, namespace: str, folder: str, after: str) -> list[str]:
    """The next thousand known paths at or below a folder, in order, after a path ("" at first)."""
    inside = folder.rstrip("/") + "/"
    rows = sql.execute(
        "SELECT path FROM documents WHERE namespace = ? AND path > ?"
        " AND (path = ? OR (path >= ? AND path < ?)) ORDER BY path LIMIT 1000",
        (namespace, after, folder, inside, inside[:-1] + "0"),  # "0" comes after "/"
    )
    return [path for (path,) in rows]


def listed(sql: sqlite3.Connection, namespaces: Sequence[str] | None) -> Iterator[Listed]:
    """The files of some namespaces (None: all) that have notes, by namespace and path."""
    names = list(namespaces or ())
    chosen = "" if namespaces is None else f"AND namespace IN ({', '.join('?' * len(names))})"
    rows = sql.execute(
        "SELECT namespace, path, size, chunks, ingested_at FROM documents"
        f" WHERE {_HAS_NOTES} {chosen} ORDER BY namespace, path",
        names,
    )
    return (Listed(*row) for row in rows)
