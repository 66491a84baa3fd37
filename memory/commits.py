"""One commit for all who write at the same moment.

A commit waits for the disk, so writers that come while one is under way share the next: the first
of them runs everybody's work in one transaction. Those whose work is done go on at once and wait
for no later group. What one of them raises undoes its own work alone, by a savepoint; what the
commit raises is raised to all of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar, cast

from llmos.memory.database import Database

R = TypeVar("R")


class _Work:
    """What one writer wants done, and what came of it."""

    def __init__(self, write: Callable[[sqlite3.Connection], Any]) -> None:
        self.write = write
        self.is_done = False
        self.value: Any = None
        self.problem: BaseException | None = None
        self.leads = False  # whether its thread is to commit for all who wait
        self.turn = Lock()  # held until the work is done, or its thread is to lead
        self.turn.acquire()


class GroupCommit:
    """The one way to write to a database; any thread may call it."""

    def __init__(self, database: Database, *, undone: Callable[[], None] = lambda: None) -> None:
        """`undone` is called, by the thread that writes, when any work was undone."""
        self._database = database
        self._undone = undone
        self._lock = Lock()
        self._waiting: list[_Work] = []
        self._is_led = False

    def run(self, write: Callable[[sqlite3.Connection], R]) -> R:
        """What `write` returns, once all that it did is on the disk. Raises: what it raises, having
        changed nothing."""
        own = _Work(write)
        with self._lock:
            self._waiting.append(own)
            own.leads, self._is_led = not self._is_led, True
        if not own.leads:
            self._wait(own)
        if not own.is_done:
            self._lead()
        if own.problem is not None:
            raise own.problem
        return cast("R", own.value)

    def _wait(self, own: _Work) -> None:
        try:
            own.turn.acquire()
        except BaseException:  # an interrupt: nobody must wait for who is gone
            with self._lock:
                if own in self._waiting:
                    self._waiting.remove(own)
            if own.leads:
                self._lead()
            raise

    def _lead(self) -> None:
        """Commit what waits, let its writers go on, and leave the next group to its first."""
        with self._lock:
            together, self._waiting = self._waiting, []
        try:
            self._commit(together)
        finally:
            with self._lock:
                following = self._waiting[:1]
                for one in following:
                    one.leads = True
                self._is_led = bool(following)
            # Those whose work is done wait for nobody else's.
            for one in (*together, *following):
                one.turn.release()

    def _commit(self, together: list[_Work]) -> None:
        try:
            with self._database.transaction() as sql:
                if len(together) == 1:  # the transaction is its savepoint
                    together[0].value = together[0].write(sql)
                else:
                    for one in together:
                        self._apply(sql, one)
        except BaseException as problem:  # noqa: BLE001 - each of them raises it
            self._undone()
            for one in together:
                one.problem = one.problem or problem
        finally:
            for one in together:
                one.is_done = True

    def _apply(self, sql: sqlite3.Connection, one: _Work) -> None:
        sql.execute("SAVEPOINT one")
        try:
            one.value = one.write(sql)
        except BaseException as problem:
            one.problem = problem
            if not sql.in_transaction:  # a full disk undoes all, and nobody's work is left
                raise
            sql.execute("ROLLBACK TO one")
            self._undone()
        sql.execute("RELEASE one")
