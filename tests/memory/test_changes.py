"""What a reader knows of the store's state: always the newest, looked up only after a commit."""

from __future__ import annotations

from pathlib import Path

from llmos.memory.changes import version
from llmos.memory.store import Store
from llmos.syscalls.calls import Note

DIMENSIONS = 2


def put(store: Store, text: str) -> int:
    return store.remember("a", [Note(text=text)], [[1.0, 0.0]]).ids[0]


def test_a_reader_sees_what_this_and_another_store_commit(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "memory", dimensions=DIMENSIONS)
    with store.reading() as reader:
        empty = version(reader.sql)
        first = put(store, "one")
        assert version(reader.sql).last_id == first
        second = put(other, "two")
        grown = version(reader.sql)
        assert (grown.last_id, grown.seq) == (second, empty.seq)
        other.forget("a", ids=[second])
        assert version(reader.sql).seq == empty.seq + 1
        store.vacuum()
        assert version(reader.sql).last_id == second
    other.close()


def test_nothing_is_looked_up_while_nobody_commits(store: Store) -> None:
    asked: list[str] = []
    with store.reading() as reader:
        known = version(reader.sql)
        reader.sql.set_trace_callback(asked.append)
        assert version(reader.sql) == version(reader.sql) == known
        assert asked == ["PRAGMA data_version"] * 2
        put(store, "one")
        assert version(reader.sql).last_id == 1
        assert len(asked) == 4
        reader.sql.set_trace_callback(None)


def test_a_snapshot_stays_at_its_state(store: Store) -> None:
    with store.reading() as reader:
        reader.sql.execute("BEGIN")
        before = version(reader.sql)
        put(store, "one")
        assert version(reader.sql) == before
        reader.sql.execute("COMMIT")
        assert version(reader.sql).last_id == 1
