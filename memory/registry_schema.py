"""The tables of the model registry's database, and how an older version becomes this one.

Refuses to know files: what a migration does with those is given to it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

SCHEMA_VERSION = 1

_VERSIONS = """
CREATE TABLE versions (
    name TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    base TEXT,
    path TEXT,
    parent TEXT,
    metrics TEXT NOT NULL,
    card TEXT NOT NULL,
    created_at REAL NOT NULL,
    slot TEXT,
    size_bytes INTEGER NOT NULL DEFAULT 0,
    licence TEXT,
    data_hashes TEXT NOT NULL DEFAULT '{}',
    digest TEXT NOT NULL DEFAULT '',
    is_pinned INTEGER NOT NULL DEFAULT 0
) STRICT
"""
_PROMOTIONS = """
CREATE TABLE promotions (
    id INTEGER PRIMARY KEY,
    slot TEXT NOT NULL,
    name TEXT NOT NULL REFERENCES versions (name) ON DELETE CASCADE,
    at REAL NOT NULL,
    undone_at REAL
) STRICT
"""
# Decisions outlive the versions that they are about.
_AROUND = (
    """
CREATE TABLE files (
    version TEXT NOT NULL REFERENCES versions (name) ON DELETE CASCADE,
    path TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    PRIMARY KEY (version, path)
) STRICT
""",
    "CREATE INDEX files_by_content ON files (sha256)",
    """
CREATE TABLE decisions (
    id INTEGER PRIMARY KEY,
    slot TEXT NOT NULL,
    name TEXT,
    before TEXT,
    decision TEXT NOT NULL
) STRICT
""",
    "CREATE INDEX promotions_in_force ON promotions (slot, id) WHERE undone_at IS NULL",
    "CREATE INDEX versions_by_parent ON versions (parent) WHERE parent IS NOT NULL",
)
_FROM_0 = (
    "ALTER TABLE versions ADD COLUMN slot TEXT",
    "ALTER TABLE versions ADD COLUMN size_bytes INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE versions ADD COLUMN licence TEXT",
    "ALTER TABLE versions ADD COLUMN data_hashes TEXT NOT NULL DEFAULT '{}'",
    "ALTER TABLE versions ADD COLUMN digest TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE versions ADD COLUMN is_pinned INTEGER NOT NULL DEFAULT 0",
    "UPDATE versions SET slot = base",
    "DROP INDEX IF EXISTS promotions_in_force",
    "ALTER TABLE promotions RENAME COLUMN base TO slot",
)


def prepare(database: sqlite3.Connection, bring_in: Callable[[], None]) -> bool:
    """Make the tables, or bring those of an older version up to date; True where it did that.

    Must be called in a transaction. `bring_in` is called once the tables of an older version are
    as they are now, to take in the files of the versions in them.
    Raises: sqlite3.DatabaseError for a database of a newer version.
    """
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    if version == SCHEMA_VERSION:
        return False
    if version > SCHEMA_VERSION:
        raise sqlite3.DatabaseError(f"it was made by a newer llmos (schema {version})")
    names = {row[0] for row in database.execute("SELECT name FROM sqlite_schema")}
    is_older = "versions" in names
    first = _FROM_0 if is_older else (_VERSIONS, _PROMOTIONS)
    for statement in (*first, *_AROUND):
        database.execute(statement)
    if is_older:
        bring_in()
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return True
