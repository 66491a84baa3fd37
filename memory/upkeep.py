"""Looking after a store's files: checking them, copying them while in use, and leaving no traces.

Every function works beside other users of the store, in this process and in others.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llmos.memory import notes as rows
from llmos.memory.database import Database
from llmos.memory.folder import DATABASE_FILE, replace_durably
from llmos.memory.fresh import settle_all
from llmos.syscalls.errors import SyscallError

if TYPE_CHECKING:
    from llmos.memory.vectors import Index

_PAGES_A_STEP = 4096  # a backup lets writers in between steps
_MOST_PROBLEMS = 20  # of one kind are listed


class Report(NamedTuple):
    """What a check found; no problems is a whole store."""

    notes: int
    problems: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        return not self.problems


def check(database: Database, index: Index | None) -> Report:
    """Read everything and compare it: pages, references, full text, vectors, and the index.

    `index` has caught up with the database; None is one that cannot, which the vectors show.
    Writers wait while the full text is compared.
    """
    problems: list[str] = []
    with database.reading() as sql:
        pages = sql.execute(f"PRAGMA integrity_check({_MOST_PROBLEMS})").fetchall()
        problems += [f"database: {text}" for (text,) in pages if text != "ok"]
        dangling = sql.execute("PRAGMA foreign_key_check").fetchmany(_MOST_PROBLEMS)
        problems += [f"{table}: row {row} belongs to no note" for table, row, *_ in dangling]
        (dimensions,) = sql.execute("SELECT dimensions FROM store").fetchone()
        without = sql.execute(
            "SELECT notes.id FROM notes LEFT JOIN vectors ON vectors.note = notes.id"
            " WHERE vectors.note IS NULL OR length(vectors.vector) <> ? LIMIT ?",
            (4 * dimensions, _MOST_PROBLEMS),
        ).fetchall()
        problems += [f"note {note}: it has no whole vector" for (note,) in without]
        problems += _by_value(sql)
        items = rows.count(sql)
        if index is not None and not np.array_equal(index.ids, rows.all_ids(sql)):
            problems.append("the vector index does not hold exactly the notes")
    problems += _full_text(database)
    return Report(items, tuple(problems))


def _by_value(sql: sqlite3.Connection) -> list[str]:
    """The two indexes that are tables of their own, compared with what they are of."""
    problems: list[str] = []
    for name, columns, source in (
        ("metadata", "key, value, note FROM facts_by_value", "key, value, note FROM facts"),
        ("digests", "start, note FROM digests", "substr(digest, 1, 8), id AS note FROM notes"),
    ):
        wanted = f"SELECT {source} WHERE note <= (SELECT sorted FROM store)"
        held = f"SELECT {columns}"
        differences = sql.execute(
            f"SELECT count(*) FROM (SELECT * FROM ({wanted} EXCEPT {held})"
            f" UNION ALL SELECT * FROM ({held} EXCEPT {wanted}))"
        ).fetchone()
        if differences[0]:
            problems.append(f"the index by {name} does not match the notes")
    return problems


def _full_text(database: Database) -> list[str]:
    """FTS5 compares its index with all notes, by a command that is written like an insertion.

    Fresh notes are entered for that, and taken out again.
    """
    with closing(database.another()) as sql:
        sql.execute("BEGIN IMMEDIATE")
        try:
            settle_all(sql)
            sql.execute("INSERT INTO notes_text (notes_text, rank) VALUES ('integrity-check', 1)")
        except sqlite3.DatabaseError as problem:
            if (problem.sqlite_errorcode or 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
                raise
            return ["the full-text index does not match the notes"]
        finally:
            if sql.in_transaction:
                sql.execute("ROLLBACK")
    return []


def backup(database: Database, folder: Path) -> None:
    """Write a copy of the database into a new folder, which then is a store of its own.

    Consistent, and made while reads and writes go on. The vector index is not copied: it is made
    again when the copy is opened. Raises: SyscallError("invalid") when a store is there already;
    OSError, sqlite3.Error.
    """
    target = folder / DATABASE_FILE
    if target.exists():
        raise SyscallError(
            "invalid", f"{folder} holds a memory store already; name another folder", field="path"
        )
    folder.mkdir(parents=True, exist_ok=True)
    building = target.with_name(target.name + ".new")
    building.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(building)) as copy, database.reading() as sql:
            sql.backup(copy, pages=_PAGES_A_STEP)
            copy.execute("PRAGMA journal_mode = DELETE")
        replace_durably(building, target)
    finally:
        building.unlink(missing_ok=True)


def erase_traces(database: Database) -> None:
    """Write the database anew, so that nothing of deleted notes is left in its files.

    Deleted rows are overwritten when they go; this also takes out the words that the full-text
    index and the log still hold. Needs as much free space as the database has, and nobody who reads
    the store for the whole time. Raises: SyscallError("busy"); sqlite3.Error.
    """
    with closing(database.another()) as sql:
        sql.execute("INSERT INTO notes_text (notes_text) VALUES ('optimize')")
        sql.execute("VACUUM")
        is_busy, _, _ = sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if is_busy:
        raise SyscallError(
            "busy",
            f"somebody reads {database.path}, so its log cannot be emptied yet; try again",
            is_retryable=True,
        )
