"""What remote models have cost, over all starts of all kernels of one home.

Owns the SQLite file `spending.db`: tokens and money by a model's configured name. Refuses to know
prices and bounds (`kernel/budget.py`). What was spent can be had from nowhere else, so a damaged
file is neither replaced nor taken for an empty one: a person has to decide.

Any number of kernels may have the file open; an addition is one transaction and gives the new
total. It outlives a kernel that is killed right after it; of a power cut's last moments some may be
lost, because no caller waits for the disk. One thread at a time uses an object.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from llmos.syscalls.errors import SyscallError

SPENDING_FILE = "spending.db"
_BUSY_TIMEOUT_S = 0.5
_SCHEMA = """
CREATE TABLE spending (
    model TEXT PRIMARY KEY,
    tokens INTEGER NOT NULL CHECK (tokens >= 0),
    money REAL NOT NULL CHECK (money >= 0)
) STRICT, WITHOUT ROWID;
"""
_ADD = """
INSERT INTO spending (model, tokens, money) VALUES (?, ?, ?)
ON CONFLICT (model) DO UPDATE SET tokens = tokens + excluded.tokens, money = money + excluded.money
RETURNING tokens, money
"""


class Spent(NamedTuple):
    """Tokens in and out, and money in the currency of the declared prices."""

    tokens: int = 0
    money: float = 0.0


class Spending:
    """The spending of a home; the first addition makes its file."""

    def __init__(self, home: Path) -> None:
        self._path = home / SPENDING_FILE
        self._file: sqlite3.Connection | None = None

    def of(self, model: str) -> Spent:
        """What a model has cost so far. Raises: SyscallError("storage")."""
        if self._file is None and not self._path.exists():
            return Spent()
        with self._errors():
            find = "SELECT tokens, money FROM spending WHERE model = ?"
            row = self._opened().execute(find, (model,)).fetchone()
        return Spent() if row is None else Spent(*row)

    def add(self, model: str, cost: Spent) -> Spent:
        """Add what a model has cost; returns the total. Raises: SyscallError("storage")."""
        with self._errors():
            file = self._opened()
            with file:
                (total,) = file.execute(_ADD, (model, *cost)).fetchall()
                return Spent(*total)

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    # --- internals --------------------------------------------------------------------------------

    def _opened(self) -> sqlite3.Connection:
        if self._file is None:
            if not self._path.exists():
                self._make()
            file = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S)
            try:
                _check(file)  # first: what is damaged is not written to
                file.execute("PRAGMA synchronous = NORMAL")
            except sqlite3.Error:
                file.close()
                raise
            self._file = file
        return self._file

    def _make(self) -> None:
        """Make the file whole under another name, so that an empty one is always a damaged one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        made = self._path.with_name(f".{self._path.name}-{uuid.uuid4().hex}")
        try:
            with closing(sqlite3.connect(made)) as file:
                file.execute("PRAGMA journal_mode = WAL")  # a mark in the file, for all to come
                file.executescript(_SCHEMA)
            os.link(made, self._path)
        except FileExistsError:
            return  # another kernel was first
        finally:
            made.unlink(missing_ok=True)

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as problem:
            raise SyscallError(
                "storage",
                f"what remote models have cost is kept in {self._path}, which cannot be used "
                f"({problem}); see to the disk, bring back a copy of the file, or delete it to "
                "count from nothing again",
                path=str(self._path),
            ) from problem


def _check(file: sqlite3.Connection) -> None:
    """Raises: sqlite3.Error for a file that is not whole."""
    (found,) = file.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    file.execute("SELECT * FROM spending LIMIT 0")
