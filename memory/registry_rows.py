"""The model registry's rows: statements by name, and versions and decisions as they are stored.

Refuses to know locks, transactions and files: `registry.py` has those. Every function is one
statement, which reads one consistent state.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from typing import Any

from llmos.memory.blobs import Blob
from llmos.syscalls.learning_results import Decision, ModelVersion

_IN_FORCE = "(SELECT max(id) FROM promotions WHERE slot = v.slot AND undone_at IS NULL)"
_COLUMNS = (
    "name, kind, base, path, parent, metrics, card, created_at, slot, size_bytes, licence,"
    " data_hashes, digest, is_pinned"
)
_OF_VERSION = ", ".join(f"v.{name}" for name in _COLUMNS.split(", "))
_JSON = ("metrics", "card", "data_hashes")


def insert(database: sqlite3.Connection, version: ModelVersion, files: Mapping[str, Blob]) -> None:
    """A new version with its files."""
    value = version.model_dump()
    values = [
        json.dumps(value[name]) if name in _JSON else value[name] for name in _COLUMNS.split(", ")
    ]
    marks = ", ".join("?" * len(values))
    database.execute(f"INSERT INTO versions ({_COLUMNS}) VALUES ({marks})", values)
    _insert_files(database, version.name, files)


def replace(database: sqlite3.Connection, version: ModelVersion, files: Mapping[str, Blob]) -> None:
    """A version whose files have been taken in."""
    database.execute(
        "UPDATE versions SET path = ?, size_bytes = ?, digest = ? WHERE name = ?",
        (version.path, version.size_bytes, version.digest, version.name),
    )
    _insert_files(database, version.name, files)


def _insert_files(database: sqlite3.Connection, name: str, files: Mapping[str, Blob]) -> None:
    database.executemany(
        "INSERT INTO files VALUES (?, ?, ?, ?)",
        [(name, path, blob.sha256, blob.size_bytes) for path, blob in files.items()],
    )


def delete(database: sqlite3.Connection, name: str) -> None:
    """Forget a version, its files and its promotions."""
    database.execute("DELETE FROM versions WHERE name = ?", (name,))


def pin(database: sqlite3.Connection, name: str, is_pinned: bool) -> None:
    database.execute("UPDATE versions SET is_pinned = ? WHERE name = ?", (is_pinned, name))


def move(database: sqlite3.Connection, name: str, slot: str) -> None:
    """Give a version another slot; its past promotions stay with the old one."""
    database.execute("UPDATE versions SET slot = ? WHERE name = ?", (slot, name))


def select(database: sqlite3.Connection, where: str = "TRUE", *values: str) -> list[ModelVersion]:
    """Versions, oldest first."""
    found = database.execute(
        f"SELECT {_OF_VERSION}, p.name IS NOT NULL FROM versions v LEFT JOIN promotions p"
        f" ON p.id = {_IN_FORCE} AND p.name = v.name WHERE {where}"
        " ORDER BY v.created_at, v.rowid",
        values,
    ).fetchall()
    return [_version(row) for row in found]


def _version(row: tuple[Any, ...]) -> ModelVersion:
    value: dict[str, Any] = dict(zip((*_COLUMNS.split(", "), "is_promoted"), row, strict=True))
    for name in _JSON:
        value[name] = json.loads(value[name])
    value["is_promoted"], value["is_pinned"] = bool(value["is_promoted"]), bool(value["is_pinned"])
    return ModelVersion(**value)


def files(database: sqlite3.Connection, name: str) -> dict[str, Blob]:
    """A version's files by their names in it."""
    found = database.execute(
        "SELECT path, sha256, size_bytes FROM files WHERE version = ? ORDER BY path", (name,)
    )
    return {path: Blob(sha256, size) for path, sha256, size in found}


def contents(database: sqlite3.Connection) -> set[str]:
    """Every content that some version has."""
    return {row[0] for row in database.execute("SELECT DISTINCT sha256 FROM files")}


def has_content(database: sqlite3.Connection, sha256: str) -> bool:
    row = database.execute("SELECT 1 FROM files WHERE sha256 = ? LIMIT 1", (sha256,)).fetchone()
    return row is not None


def children(database: sqlite3.Connection, name: str) -> list[str]:
    """The versions that were made from a version."""
    found = database.execute(
        "SELECT name FROM versions WHERE (parent = ?1 OR base = ?1) AND name != ?1 ORDER BY name",
        (name,),
    )
    return [row[0] for row in found]


def promotion(database: sqlite3.Connection, slot: str) -> tuple[int, str] | None:
    """The promotion in force for a slot: its id and version."""
    return database.execute(
        "SELECT id, name FROM promotions WHERE slot = ? AND undone_at IS NULL"
        " ORDER BY id DESC LIMIT 1",
        (slot,),
    ).fetchone()


def promoted(database: sqlite3.Connection, slot: str, *, place: int = 0) -> str | None:
    """The version that serves a slot, or that would after `place` rollbacks."""
    row = database.execute(
        "SELECT name FROM promotions WHERE slot = ? AND undone_at IS NULL"
        " ORDER BY id DESC LIMIT 1 OFFSET ?",
        (slot, place),
    ).fetchone()
    return row[0] if row else None


def promote(database: sqlite3.Connection, slot: str, name: str) -> None:
    database.execute(
        "INSERT INTO promotions (slot, name, at) VALUES (?, ?, ?)", (slot, name, time.time())
    )


def undo(database: sqlite3.Connection, promotion: int) -> None:
    database.execute("UPDATE promotions SET undone_at = ? WHERE id = ?", (time.time(), promotion))


def decide(database: sqlite3.Connection, decision: Decision) -> None:
    """Keep a decision."""
    database.execute(
        "INSERT INTO decisions (slot, name, before, decision) VALUES (?, ?, ?, ?)",
        (decision.slot, decision.name, decision.before, decision.model_dump_json()),
    )


def decisions(database: sqlite3.Connection, name: str | None, limit: int) -> list[Decision]:
    """Decisions about a version, or all; the newest first."""
    found = database.execute(
        "SELECT decision FROM decisions WHERE ?1 IS NULL OR name = ?1 OR before = ?1"
        " ORDER BY id DESC LIMIT ?2",
        (name, limit),
    )
    return [Decision.model_validate_json(row[0]) for row in found]
