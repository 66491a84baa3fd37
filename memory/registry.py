"""The model registry: adapters trained here, whose parent is what, and which one serves a base.

Owns one SQLite table of versions and one of promotions; the adapters' files lie where `path` says.
Nothing of a promotion is forgotten: a rollback marks it as undone. Refuses to know how an adapter
was trained or judged. Safe for several threads and processes; every change is one transaction, and
the database's write-ahead log keeps it across a crash.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ModelVersion

Versions = list[ModelVersion]  # `list` means the method inside the class

# Another process may hold the database for one short transaction, never longer.
_BUSY_TIMEOUT_S = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS versions (
    name TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    base TEXT,
    path TEXT,
    parent TEXT,
    metrics TEXT NOT NULL,
    card TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS promotions (
    id INTEGER PRIMARY KEY,
    base TEXT NOT NULL,
    name TEXT NOT NULL REFERENCES versions (name) ON DELETE CASCADE,
    at REAL NOT NULL,
    undone_at REAL
) STRICT;
CREATE INDEX IF NOT EXISTS promotions_in_force ON promotions (base, id) WHERE undone_at IS NULL;
"""


class Registry:
    """The versions in one folder's `registry.sqlite`."""

    def __init__(self, folder: Path) -> None:
        """Open or make the registry. Raises: SyscallError("storage")."""
        self._path = folder / "registry.sqlite"
        self._lock = threading.Lock()
        with self._errors():
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            # A promotion that was acknowledged survives a power cut, not only a crash.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute("PRAGMA foreign_keys = ON")
            self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the database; the registry cannot be used after."""
        with self._lock:
            self._database.close()

    def add(self, version: ModelVersion) -> ModelVersion:
        """Record a version and return it as stored; `created_at` 0 becomes now.

        An adapter needs a base. `is_promoted` is ignored: only `promote` promotes.
        Raises: SyscallError("invalid") when the name is taken or the base missing; ("storage").
        """
        if version.kind == "adapter" and version.base is None:
            raise SyscallError("invalid", f"the adapter {version.name} names no base", field="base")
        row = (
            version.name,
            version.kind,
            version.base,
            version.path,
            version.parent,
            json.dumps(version.metrics),
            json.dumps(version.card),
            version.created_at or time.time(),
        )
        with self._transaction() as database:
            added = database.execute(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row
            ).rowcount
            if not added:
                raise SyscallError(
                    "invalid",
                    f"there is a version named {version.name} already; choose another name or "
                    "remove it first",
                    field="name",
                )
            return self._get(version.name)

    def list(self) -> Versions:
        """All versions, oldest first."""
        with self._lock, self._errors():
            return self._select("TRUE")

    def get(self, name: str) -> ModelVersion:
        """One version. Raises: SyscallError("unknown_model") with the known names."""
        with self._lock, self._errors():
            return self._get(name)

    def promote(self, name: str) -> ModelVersion:
        """Make an adapter the default for its base; a second time in a row changes nothing.

        Raises: SyscallError("unknown_model"); ("invalid") for what is no adapter.
        """
        with self._transaction() as database:
            version = self._get(name)
            if version.base is None:
                raise SyscallError(
                    "invalid", f"{name} is no adapter, so there is no base to serve", field="name"
                )
            if not version.is_promoted:
                database.execute(
                    "INSERT INTO promotions (base, name, at) VALUES (?, ?, ?)",
                    (version.base, name, time.time()),
                )
            return self._get(name)

    def rollback(self, base: str) -> Versions:
        """Undo the last promotion of a base: what served before serves again.

        Returns the base's versions. Raises: SyscallError("not_found") when nothing is promoted.
        """
        with self._transaction() as database:
            current = self._promotion(base)
            if current is None:
                raise SyscallError(
                    "not_found",
                    f"no adapter of {base} is promoted, so there is nothing to roll back",
                    what="promotion",
                    name=base,
                )
            database.execute(
                "UPDATE promotions SET undone_at = ? WHERE id = ?", (time.time(), current[0])
            )
            return self._select("v.base = ?", base)

    def promoted(self, base: str) -> str | None:
        """The adapter that serves a base, or None for the base itself."""
        with self._lock, self._errors():
            current = self._promotion(base)
            return current[1] if current else None

    def remove(self, name: str) -> None:
        """Forget a version and its past promotions; its files stay.

        Raises: SyscallError("unknown_model"); ("busy") while it serves its base.
        """
        with self._transaction() as database:
            version = self._get(name)
            if version.is_promoted:
                raise SyscallError(
                    "busy",
                    f"{name} serves {version.base}; roll back or promote another one first",
                    name=name,
                )
            database.execute("DELETE FROM versions WHERE name = ?", (name,))

    # --- under the lock; a single statement reads one consistent state ---

    def _get(self, name: str) -> ModelVersion:
        found = self._select("v.name = ?", name)
        if found:
            return found[0]
        known = [version.name for version in self._select("TRUE")]
        raise SyscallError(
            "unknown_model",
            f"the registry has no version {name}; it has: {', '.join(known) or 'none'}",
            name=name,
            known=known,
        )

    def _promotion(self, base: str) -> tuple[int, str] | None:
        """The promotion in force for a base: its id and adapter."""
        return self._database.execute(
            "SELECT id, name FROM promotions WHERE base = ? AND undone_at IS NULL"
            " ORDER BY id DESC LIMIT 1",
            (base,),
        ).fetchone()

    def _select(self, where: str, *values: str) -> Versions:
        rows = self._database.execute(
            "SELECT v.name, kind, v.base, path, parent, metrics, card, created_at,"
            " p.name IS NOT NULL FROM versions v LEFT JOIN promotions p ON p.id ="
            "   (SELECT max(id) FROM promotions WHERE base = v.base AND undone_at IS NULL)"
            f"   AND p.name = v.name WHERE {where} ORDER BY created_at, v.rowid",
            values,
        ).fetchall()
        return [_version(*row) for row in rows]

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        """One transaction that takes the write lock at once, so that it cannot fail half-way."""
        with self._lock, self._errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors, such as a full disk.
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as problem:
            if getattr(problem, "sqlite_errorname", "") == "SQLITE_BUSY":
                raise SyscallError(
                    "busy",
                    "another process is writing to the model registry; try again",
                    is_retryable=True,
                    path=str(self._path),
                ) from problem
            raise SyscallError(
                "storage",
                f"the model registry {self._path} cannot be used: {problem}; free space there and "
                "check its permissions, or move a damaged file away",
                path=str(self._path),
            ) from problem


def _version(
    name: str,
    kind: Any,
    base: str | None,
    path: str | None,
    parent: str | None,
    metrics: str,
    card: str,
    created_at: float,
    is_promoted: int,
) -> ModelVersion:
    return ModelVersion(
        name=name,
        kind=kind,
        base=base,
        path=path,
        parent=parent,
        is_promoted=bool(is_promoted),
        metrics=json.loads(metrics),
        card=json.loads(card),
        created_at=created_at,
    )
