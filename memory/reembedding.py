"""The change to another embedding model: new vectors beside those in use, then in their place.

The new vectors are made in batches into a table of their own, each batch durable, while searches
and writes go on with the old ones. Once every note has one, they take the old ones' place in one
transaction, and every process that has the store open makes its index anew (`changes.py`,
`generation`). A change that was interrupted goes on where it was; one to yet another model begins
again. Refuses to know how text becomes vectors.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llmos.memory.folder import FileLock
from llmos.memory.schema import VECTORS
from llmos.memory.vector_model import model_text
from llmos.memory.vectors import unit_vectors
from llmos.syscalls.errors import SyscallError

if TYPE_CHECKING:
    from llmos.memory.notes import Matrix
    from llmos.memory.reader import Reader

Embed = Callable[[Sequence[str]], Sequence[Sequence[float]]]

NOTES_AT_ONCE = 128  # little to do again after a crash, and enough for good batches


LOCK_FILE = "reembedding.lock"  # one process makes them; the others see it done


class Shelf(Protocol):
    """What is asked of the store (`store.py`)."""

    @property
    def folder(self) -> Path: ...

    def reading(self) -> AbstractContextManager[Reader]: ...

    def record(self, write: Callable[[sqlite3.Connection], None]) -> None: ...


def reembed(store: Shelf, model: str, dimensions: int, embed: Embed) -> int:
    """Give every note the vector that another model makes of it; how many this call made.

    `model` is the model's name in the store, `dimensions` what it gives. Blocks for as long as it
    takes; what `embed` raises ends it, and another call goes on from there.
    Raises: SyscallError("storage"); ("busy") while another process does it; ValueError for vectors
    of another size.
    """
    lock = FileLock.take(store.folder / LOCK_FILE)
    if lock is None:
        raise SyscallError(
            "busy", "another process makes the store's vectors anew", is_retryable=True
        )
    try:
        return _reembed(store, model, dimensions, embed)
    finally:
        lock.release()


def _reembed(store: Shelf, model: str, dimensions: int, embed: Embed) -> int:
    store.record(lambda sql: _begin(sql, model))
    with store.reading() as reader:
        if model_text(reader.sql) == model:  # another process was faster
            return 0
    done = 0
    while True:
        last = 0
        while texts := _without(store, last):
            vectors = unit_vectors(embed([text for _, text in texts]), dimensions)
            ids = [note for note, _ in texts]
            store.record(lambda sql, ids=ids, vectors=vectors: _keep(sql, ids, vectors))
            done += len(ids)
            last = ids[-1]
        if _finish(store, model, dimensions):
            return done


def progress(sql: sqlite3.Connection) -> tuple[int, int] | None:
    """How many notes have the new vectors, of how many; None when no change is under way."""
    (model,) = sql.execute("SELECT next_model FROM store").fetchone()
    if model is None:
        return None
    return sql.execute(
        "SELECT (SELECT count(*) FROM vectors_next), (SELECT count(*) FROM notes)"
    ).fetchone()


def _begin(sql: sqlite3.Connection, model: str) -> None:
    (under_way,) = sql.execute("SELECT next_model FROM store").fetchone()
    if model in (under_way, model_text(sql)):
        return
    sql.execute("DROP TABLE IF EXISTS vectors_next")
    sql.execute(VECTORS.replace("TABLE vectors", "TABLE vectors_next"))
    sql.execute("UPDATE store SET next_model = ?", (model,))


def _without(store: Shelf, last: int) -> list[tuple[int, str]]:
    """The next notes above an id that have no new vector yet."""
    with store.reading() as reader:
        return reader.sql.execute(
            "SELECT notes.id, notes.text FROM notes"
            " LEFT JOIN vectors_next ON vectors_next.note = notes.id"
            " WHERE vectors_next.note IS NULL AND notes.id > ? ORDER BY notes.id LIMIT ?",
            (last, NOTES_AT_ONCE),
        ).fetchall()


def _keep(sql: sqlite3.Connection, ids: Sequence[int], vectors: Matrix) -> None:
    """Store new vectors, but for notes that were deleted meanwhile."""
    sql.executemany(
        "INSERT OR IGNORE INTO vectors_next SELECT id, ? FROM notes WHERE id = ?",
        [(vector.astype("<f4").tobytes(), note) for note, vector in zip(ids, vectors, strict=True)],
    )


def _finish(store: Shelf, model: str, dimensions: int) -> bool:
    """Put the new vectors in place of the old; False when a note came that has none yet."""
    is_done = True

    def swap(sql: sqlite3.Connection) -> None:
        nonlocal is_done
        missing = sql.execute(
            "SELECT EXISTS (SELECT 1 FROM notes WHERE id NOT IN (SELECT note FROM vectors_next))"
        ).fetchone()[0]
        if missing:
            is_done = False
            return
        sql.execute("DROP TABLE vectors")
        sql.execute("ALTER TABLE vectors_next RENAME TO vectors")
        sql.execute(
            "UPDATE store SET dimensions = ?, embedding_model = ?, next_model = NULL,"
            " generation = generation + 1",
            (dimensions, model),
        )

    store.record(swap)
    return is_done
