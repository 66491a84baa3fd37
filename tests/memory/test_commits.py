"""Writers that come together share a commit, and each fails alone."""

from __future__ import annotations

import signal
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmos.memory.commits import GroupCommit
from llmos.memory.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path, dimensions=4)
    opened.connection.execute("CREATE TABLE things (name TEXT UNIQUE)")
    yield opened
    opened.close()


def names(database: Database) -> list[str]:
    return [name for (name,) in database.connection.execute("SELECT name FROM things ORDER BY 1")]


def put(sql: sqlite3.Connection, name: str) -> str:
    sql.execute("INSERT INTO things VALUES (?)", (name,))
    return name.upper()


def test_a_writer_gets_what_it_returned(database: Database) -> None:
    commits = GroupCommit(database)
    assert commits.run(lambda sql: put(sql, "a")) == "A"
    assert names(database) == ["a"]
    assert not database.connection.in_transaction


def test_writers_that_come_together_share_a_commit_and_fail_alone(database: Database) -> None:
    """One writes; nine come meanwhile, of whom one cannot. They take one more commit together."""
    commits = GroupCommit(database)
    inside, others_wait = threading.Event(), threading.Event()
    statements: list[str] = []
    database.connection.set_trace_callback(statements.append)

    def first(sql: sqlite3.Connection) -> str:
        inside.set()
        assert others_wait.wait(10)
        return put(sql, "first")

    def other(number: int) -> str:
        def write(sql: sqlite3.Connection) -> str:
            put(sql, f"half {number}")
            return put(sql, "first" if number == 4 else f"other {number}")

        return commits.run(write)

    with ThreadPoolExecutor(10) as pool:
        leading = pool.submit(commits.run, first)
        assert inside.wait(10)
        following = [pool.submit(other, number) for number in range(9)]
        while len(commits._waiting) < 9:
            threading.Event().wait(0.001)
        others_wait.set()
        assert leading.result() == "FIRST"
        for number, one in enumerate(following):
            if number == 4:
                with pytest.raises(sqlite3.IntegrityError):
                    one.result()
            else:
                assert one.result() == f"OTHER {number}"
    assert len(names(database)) == 1 + 2 * 8 and "half 4" not in names(database)
    assert statements.count("COMMIT") == 2


def test_what_the_commit_raises_is_raised_to_all(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = GroupCommit(database)

    def fail(sql: sqlite3.Connection) -> None:
        put(sql, "lost")
        sql.execute("ROLLBACK")  # as a full disk does
        raise sqlite3.OperationalError("full")

    with pytest.raises(sqlite3.OperationalError, match="full"):
        commits.run(fail)
    assert names(database) == []
    commits.run(lambda sql: put(sql, "next"))
    assert names(database) == ["next"]


def test_a_writer_that_is_interrupted_while_it_waits_holds_up_nobody(database: Database) -> None:
    """Only the main thread can be. The next one gets its turn all the same."""
    commits = GroupCommit(database)
    inside, go_on = threading.Event(), threading.Event()

    def first(sql: sqlite3.Connection) -> str:
        inside.set()
        assert go_on.wait(10)
        return put(sql, "first")

    def interrupt() -> None:
        while len(commits._waiting) < 1:
            threading.Event().wait(0.001)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)

    with ThreadPoolExecutor(3) as pool:
        leading = pool.submit(commits.run, first)
        assert inside.wait(10)
        pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            commits.run(lambda sql: put(sql, "interrupted"))
        behind = pool.submit(commits.run, lambda sql: put(sql, "behind"))
        go_on.set()
        assert leading.result(10) == "FIRST" and behind.result(10) == "BEHIND"
    assert commits.run(lambda sql: put(sql, "later")) == "LATER"
    assert "interrupted" not in names(database)
