"""The tables: an older database becomes the newest in one step, and loses nothing."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from llmos.memory import notes as rows
from llmos.memory import schema
from llmos.memory.query import Query
from llmos.memory.store import Store
from llmos.syscalls.calls import Note

VERSION_1 = """
CREATE TABLE store (store_id TEXT NOT NULL, dimensions INTEGER NOT NULL) STRICT;
CREATE TABLE notes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL,
    source TEXT,
    position INTEGER,
    created_at REAL NOT NULL,
    expires_at REAL,
    digest BLOB NOT NULL UNIQUE
) STRICT;
CREATE INDEX notes_by_namespace ON notes (namespace, expires_at);
CREATE INDEX notes_by_source ON notes (namespace, source);
CREATE INDEX notes_by_expiry ON notes (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE vectors (
    note INTEGER PRIMARY KEY REFERENCES notes ON DELETE CASCADE,
    vector BLOB NOT NULL
) STRICT;
CREATE TABLE facts (
    note INTEGER NOT NULL REFERENCES notes ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (note, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX facts_by_value ON facts (key, value, note);
CREATE VIRTUAL TABLE notes_text USING fts5 (
    text, content = 'notes', content_rowid = 'id',
    tokenize = 'porter unicode61 remove_diacritics 2'
);
CREATE TRIGGER notes_text_insert AFTER INSERT ON notes BEGIN
    INSERT INTO notes_text (rowid, text) VALUES (new.id, new.text);
END;
CREATE TRIGGER notes_text_delete AFTER DELETE ON notes BEGIN
    INSERT INTO notes_text (notes_text, rowid, text) VALUES ('delete', old.id, old.text);
END;
INSERT INTO store VALUES ('old', 4);
INSERT INTO notes VALUES (1, 'a', 'The pump leaks', '{"n":1}', 'log', 3, 1000.0, NULL, x'01');
INSERT INTO notes VALUES (2, 'b', 'The valve holds', '{}', NULL, NULL, 1001.0, 9e9, x'02');
INSERT INTO notes VALUES (3, 'b', 'deleted', '{}', NULL, NULL, 1001.0, NULL, x'03');
INSERT INTO facts VALUES (1, '"n"', '1');
DELETE FROM notes WHERE id = 3;
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store as version 1 left it."""
    with closing(sqlite3.connect(tmp_path / "notes.db", isolation_level=None)) as connection:
        connection.executescript(VERSION_1)
        for note, vector in ((1, [1.0, 0.0, 0.0, 0.0]), (2, [0.0, 1.0, 0.0, 0.0])):
            blob = np.asarray(vector, dtype="<f4").tobytes()
            connection.execute("INSERT INTO vectors VALUES (?, ?)", (note, blob))
        connection.execute("PRAGMA application_id = 1819045231")
        connection.execute("PRAGMA user_version = 1")
        connection.execute("PRAGMA journal_mode = WAL")
    return tmp_path


@pytest.fixture
def folder_of_2(tmp_path: Path) -> Path:
    """A store as version 2 left it."""
    script = Path(__file__).with_name("version_2.sql").read_text()
    with closing(sqlite3.connect(tmp_path / "notes.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.executescript(script)
        digest = rows.prepare("a", _PUMP).digest
        connection.execute("UPDATE notes SET digest = ? WHERE id = 1", (digest,))
        for place, note in enumerate((1, 2, 4, 5)):
            blob = np.eye(4, dtype="<f4")[place].tobytes()
            connection.execute("INSERT INTO vectors VALUES (?, ?)", (note, blob))
        connection.execute("PRAGMA application_id = 1819045231")
        connection.execute("PRAGMA user_version = 2")
        connection.execute("PRAGMA journal_mode = WAL")
    return tmp_path


_PUMP = Note(text="The pump leaks", metadata={"n": 1}, source="log")


def columns(path: Path) -> dict[str, list[str]]:
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {
            name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
            for (name,) in tables.fetchall()
        }


def things(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        named = connection.execute("SELECT type, name, tbl_name FROM sqlite_master").fetchall()
    return sorted(" ".join(row) for row in named)


def find(store: Store, text: str, mode: str = "hybrid") -> list[str]:
    hits = store.retrieve(
        Query(text=text, vector=[1, 0, 0, 0], mode=mode, namespaces=["a", "b"])  # pyright: ignore[reportArgumentType]
    ).hits
    return [hit.text for hit in hits]


def test_an_older_store_opens_as_the_newest_and_loses_nothing(folder: Path) -> None:
    store = Store(folder, dimensions=4)
    assert find(store, "pump") == ["The pump leaks", "The valve holds"]
    assert find(store, "valves", "lexical") == ["The valve holds"]
    (hit,) = store.retrieve(Query(text="pump", mode="lexical", namespaces=["a"])).hits
    assert (hit.id, hit.metadata, hit.source, hit.position) == (1, {"n": 1}, "log", 3)
    assert store.remember("a", [Note(text="new")], [[0, 0, 1, 0]]).ids == (4,)
    assert store.forget("b", ids=[2]).count == 1
    assert find(store, "valve", "lexical") == []
    store.close()
    with closing(sqlite3.connect(folder / "notes.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (schema.SCHEMA_VERSION,)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM vectors").fetchone() == (2,)


def test_a_store_of_version_2_is_found_again_by_everything(folder_of_2: Path) -> None:
    store = Store(folder_of_2, dimensions=4)
    assert store.check().problems == ()
    assert find(store, "pumps", "lexical") == ["The pump leaks"]
    query = Query(text="x", vector=[1, 0, 0, 0], namespaces=["a", "b"], where={"n": 1})
    assert [hit.id for hit in store.retrieve(query).hits] == [1]
    told = store.remember("a", [_PUMP, Note(text="new", metadata={"n": 1})], [[0, 0, 1, 0]] * 2)
    assert (told.ids, told.duplicates) == ((1, 6), 1)
    assert sorted(hit.id for hit in store.retrieve(query).hits) == [1, 6]
    store.forget("a", ids=[5])
    assert find(store, "Ann", "lexical") == ["Ann lives in Oslo."]
    store.forget("a", ids=[1])
    assert [hit.id for hit in store.retrieve(query).hits] == [6]
    assert store.check().problems == ()
    store.close()


@pytest.mark.parametrize("made", ["folder", "folder_of_2"])
def test_a_migrated_store_is_like_a_new_one(
    made: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    old: Path = request.getfixturevalue(made)
    Store(old, dimensions=4).close()
    Store(tmp_path / "new", dimensions=4).close()
    assert columns(old / "notes.db") == columns(tmp_path / "new" / "notes.db")
    assert things(old / "notes.db") == things(tmp_path / "new" / "notes.db")


def test_a_migration_that_fails_leaves_the_older_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        broken = schema._FROM_2 + "INSERT INTO nowhere VALUES (1);"
        patch.setattr(schema, "_STEPS", {**schema._STEPS, 2: broken})
        with closing(sqlite3.connect(folder / "notes.db", isolation_level=None)) as connection:
            with pytest.raises(sqlite3.Error):
                schema.migrate(connection)
            assert connection.execute("PRAGMA user_version").fetchone() == (1,)
            assert connection.execute("SELECT count(*) FROM notes").fetchone() == (2,)
    store = Store(folder, dimensions=4)
    assert find(store, "pump", "lexical") == ["The pump leaks"]
    store.close()


def test_one_of_many_migrates(folder: Path) -> None:
    def migrate(_: int) -> bool:
        with closing(sqlite3.connect(folder / "notes.db", isolation_level=None)) as connection:
            return schema.migrate(connection)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(migrate, range(4))) == [False, False, False, True]
