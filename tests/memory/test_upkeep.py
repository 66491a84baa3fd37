"""Checks that find damage, backups that are whole, and files that keep no trace of what is gone."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from llmos.memory import changes
from llmos.memory.folder import BUILD_LOCK_FILE, FileLock
from llmos.memory.query import Query
from llmos.memory.store import Store
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Fact

DIMENSIONS = 4

SECRETS = ("Xylophagous", "zweigkuerbis", "quetzalcoatlus")


def vector(number: int) -> list[float]:
    return [1.0, number / 7.0, number % 3 - 1.0, 0.25]


def fill(store: Store, count: int = 50, namespace: str = "a") -> None:
    notes = [
        Note(text=f"note {number} of {namespace} " * 20, metadata={"n": number}, source="s")
        for number in range(count)
    ]
    store.remember(namespace, notes, [vector(number) for number in range(count)])
    store.stat()  # which takes them into the index


def traces(folder: Path, word: str) -> list[str]:
    """The files of a folder that hold a word, in any case."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in found if word.lower().encode() in path.read_bytes().lower()]


def test_forgetting_an_owner_leaves_no_byte_of_it_after_vacuum(store: Store) -> None:
    fill(store)
    first, second, third = SECRETS
    mine = [
        Note(text=f"{first} " * 30, metadata={second: second}, source=third),
        Note(
            text=f"{third} is {second}",
            fact=Fact(subject=third, relation="is", object=second),
        ),
    ]
    # In pieces, so that the full-text index has it in several of its own files.
    for place, note in enumerate(mine):
        store.remember("a", [note], [vector(90 + place)], owner="ann")
    store.flush()
    assert all(traces(store.folder, word) for word in SECRETS)
    assert store.forget("a", owner="ann").count == 2
    store.vacuum()
    assert [traces(store.folder, word) for word in SECRETS] == [[], [], []]
    assert store.check().problems == ()
    assert (
        len(store.retrieve(Query(text="note", mode="lexical", k=99, namespaces=["a"])).hits) == 50
    )


def test_a_vector_of_a_forgotten_note_is_in_no_file_after_vacuum(store: Store) -> None:
    fill(store)
    gone = store.remember("a", [Note(text="gone")], [[0.123, 0.456, 0.789, 0.321]]).ids
    store.flush()
    with store.reading() as reader:
        blob = reader.vectors(gone)[0].astype("<f4").tobytes()
    files = [path for path in store.folder.iterdir() if blob in path.read_bytes()]
    assert {path.name for path in files} >= {"vectors.faiss"}
    store.forget("a", ids=gone)
    store.vacuum()
    assert not any(blob in path.read_bytes() for path in store.folder.iterdir())


def test_vacuum_says_when_another_process_has_the_index_file(store: Store) -> None:
    fill(store)
    store.flush()
    store.forget("a", ids=[1])
    lock = FileLock.take(store.folder / BUILD_LOCK_FILE)
    assert lock is not None
    with pytest.raises(SyscallError, match="index") as caught:
        store.vacuum()
    assert caught.value.is_retryable
    lock.release()
    store.vacuum()


def test_vacuum_waits_for_no_reader_but_says_that_there_is_one(store: Store) -> None:
    fill(store)
    with closing(sqlite3.connect(store.folder / "notes.db", isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM notes").fetchone()
        fill(store, namespace="b")
        store._database.busy_timeout_s = 0.0
        with pytest.raises(SyscallError) as caught:
            store.vacuum()
        assert caught.value.code == "busy" and caught.value.is_retryable
        other.execute("COMMIT")
    store.vacuum()


def test_searches_and_writes_go_on_beside_vacuum(store: Store, tmp_path: Path) -> None:
    """The file shrinks under those who have it mapped."""
    fill(store, 3000)
    stop, failed = threading.Event(), list[BaseException]()

    def keep_using() -> None:
        other = Store(tmp_path / "memory", dimensions=4)
        try:
            while not stop.is_set():
                query = Query(text="note", vector=vector(1), k=50, namespaces=["a", "b"])
                assert len(other.retrieve(query).hits) == 50
                fill(other, 2, namespace="b")
        except BaseException as problem:  # noqa: BLE001 - shown by the test
            failed.append(problem)
        finally:
            other.close()

    user = threading.Thread(target=keep_using)
    user.start()
    sizes: list[int] = []
    try:
        for first in range(1, 2400, 600):
            store.forget("a", ids=range(first, first + 600))
            for _ in range(20):
                try:
                    store.vacuum()
                    break
                except SyscallError as problem:
                    assert problem.code == "busy"
            sizes.append((store.folder / "notes.db").stat().st_size)
    finally:
        stop.set()
        user.join()
    assert failed == [] and sizes[-1] < sizes[0] / 1.5
    assert store.check().problems == ()


def test_a_whole_store_has_no_problems(store: Store) -> None:
    fill(store)
    store.forget("a", ids=[7])
    report = store.check()
    assert (report.notes, report.problems, report.is_whole) == (49, (), True)


DAMAGES = {
    "vector": ("DELETE FROM vectors WHERE note = 7", "note 7: it has no whole vector"),
    "cut": ("UPDATE vectors SET vector = x'00' WHERE note = 7", "note 7: it has no whole vector"),
    "facts": ("INSERT INTO facts VALUES (999, '\"n\"', '1')", "belongs to no note"),
    "text": (
        "INSERT INTO notes_text (notes_text, rowid, text) VALUES ('delete', 3, 'note')",
        "full-text index",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_check_finds(store: Store, kind: str) -> None:
    statement, problem = DAMAGES[kind]
    fill(store)
    with closing(sqlite3.connect(store.folder / "notes.db")) as other, other:
        other.execute(statement)
    (found,) = store.check().problems
    assert problem in found


def test_a_check_finds_a_cut_vector_that_the_index_has_not_seen(store: Store) -> None:
    fill(store)
    with closing(sqlite3.connect(store.folder / "notes.db")) as other, other:
        other.execute("UPDATE vectors SET vector = x'00' WHERE note = 7")
    store._nearest._version = changes.Version(-1, -1, -1)  # must be made anew, and cannot
    assert store.check().problems == ("note 7: it has no whole vector",)
    with closing(sqlite3.connect(store.folder / "notes.db")) as other, other:
        other.execute(
            "UPDATE vectors SET vector = (SELECT vector FROM vectors WHERE note = 8) WHERE note = 7"
        )
    assert store.check().problems == ()


def test_a_check_finds_an_index_that_went_astray(store: Store) -> None:
    fill(store)
    store._nearest.index.remove(store._nearest.index.ids[:1])
    assert store.check().problems == ("the vector index does not hold exactly the notes",)


def test_a_backup_is_a_store_that_finds_the_same(store: Store, tmp_path: Path) -> None:
    fill(store)
    store.forget("a", ids=[7])
    store.backup(tmp_path / "deep" / "copy")
    copy = Store(tmp_path / "deep" / "copy", dimensions=4)
    query = Query(text="note 9", vector=vector(9), k=20, namespaces=["a"])
    assert copy.retrieve(query) == store.retrieve(query)
    assert copy.check().problems == ()
    copy.close()
    with pytest.raises(SyscallError) as caught:
        store.backup(tmp_path / "deep" / "copy")
    assert caught.value.code == "invalid" and "already" in caught.value.message


def test_a_backup_made_while_others_write_is_whole(store: Store, tmp_path: Path) -> None:
    fill(store)
    stop = threading.Event()

    def keep_writing() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            fill(store, 5, namespace=f"n{number}")

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        for number in range(3):
            store.backup(tmp_path / f"copy{number}")
    finally:
        stop.set()
        writer.join()
    for number in range(3):
        copy = Store(tmp_path / f"copy{number}", dimensions=4)
        assert copy.check().problems == ()
        assert {count.items for count in copy.stat().namespaces} <= {50, 5}
        copy.close()


@pytest.mark.parametrize("use", [Store.check, Store.vacuum, lambda store: store.backup(Path("x"))])
def test_a_closed_store_is_not_looked_after(store: Store, use: Callable[[Store], None]) -> None:
    store.close()
    with pytest.raises(SyscallError, match="closed"):
        use(store)
