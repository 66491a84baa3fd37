"""Uses of notes: gathered, written in batches, kept when writing fails."""

from __future__ import annotations

import sqlite3

import pytest

from llmos.memory.schema import SCHEMA
from llmos.memory.usage import Usage, write


def _written(sql: sqlite3.Connection) -> list[tuple[int, float, int]]:
    return sql.execute("SELECT note, used_at, uses FROM usage ORDER BY note").fetchall()


@pytest.fixture
def sql() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SCHEMA)
    connection.execute(
        "INSERT INTO notes (id, namespace, text, metadata, created_at, digest)"
        " VALUES (1, 'a', 'x', '{}', 0, x'00')"
    )
    yield connection
    connection.close()


def test_batches_add_up_and_notes_that_are_gone_are_left_out(sql: sqlite3.Connection) -> None:
    usage = Usage()
    for now in (5.0, 9.0):
        usage.add([1, 2], now)
        usage.add([1], now + 1)
        with usage.batch() as used:
            write(sql, used)
    assert _written(sql) == [(1, 10.0, 4)]


def test_a_batch_that_was_not_written_is_kept(sql: sqlite3.Connection) -> None:
    usage = Usage()
    usage.add([1], 5.0)
    with pytest.raises(OSError), usage.batch():
        usage.add([1], 6.0)
        raise OSError
    with usage.batch() as used:
        write(sql, used)
    assert _written(sql) == [(1, 6.0, 2)]
    with usage.batch() as used:
        assert used == {}
