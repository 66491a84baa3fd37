"""The change of embedding model in the store: nothing is lost, whenever it is interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from llmos.memory.folder import FileLock
from llmos.memory.query import Query
from llmos.memory.reembedding import LOCK_FILE, NOTES_AT_ONCE, progress, reembed
from llmos.memory.store import Store
from llmos.memory.vector_model import Made, VectorModel, made_with, parse_model
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError

OLD = VectorModel(identity="old", source="old").text
NEW = VectorModel(identity="new", source="new").text
COUNT = NOTES_AT_ONCE * 2 + 7


def old_vector(text: str) -> list[float]:
    number = int(text.split()[-1])
    return [float(number % 4 == place) + 0.001 * number for place in range(4)]


def new_vectors(texts: Sequence[str]) -> list[list[float]]:
    """Another width, and another neighbourhood."""
    numbers = [int(text.split()[-1]) for text in texts]
    return [
        [float(number % 6 == place) + 0.001 * number for place in range(6)] for number in numbers
    ]


def filled(folder: Path) -> Store:
    store = Store(folder, dimensions=4, model=OLD)
    add(store, range(COUNT))
    return store


def add(store: Store, numbers: Sequence[int], *, model: str = OLD) -> None:
    texts = [f"note {n}" for n in numbers]
    vectors = [old_vector(text) for text in texts] if model == OLD else new_vectors(texts)
    store.remember("a", [Note(text=text) for text in texts], vectors, model=model)


def found(store: Store, vector: Sequence[float], model: str) -> set[int]:
    query = Query(text="", vector=vector, model=model, k=3, mode="dense", namespaces=["a"])
    return {int(hit.text.split()[-1]) for hit in store.retrieve(query).hits}


def test_reads_are_served_by_the_old_vectors_until_the_new_are_in_place(tmp_path: Path) -> None:
    store = filled(tmp_path)
    seen: list[tuple[int, int] | None] = []

    def embed(texts: Sequence[str]) -> list[list[float]]:
        with store.reading() as reader:
            seen.append(progress(reader.sql))
        assert len(found(store, [1.0, 0, 0, 0], OLD)) == 3
        return new_vectors(texts)

    assert reembed(store, NEW, 6, embed) == COUNT
    assert seen == [(0, COUNT), (NOTES_AT_ONCE, COUNT), (2 * NOTES_AT_ONCE, COUNT)]
    assert {n % 6 for n in found(store, [0, 0, 0, 0, 1.0, 0], NEW)} == {4}
    assert store.dimensions == 6
    with store.reading() as reader:
        assert progress(reader.sql) is None
    store.close()
    assert made_with(tmp_path) == Made(6, parse_model(NEW))
    again = Store(tmp_path, dimensions=6)
    assert {n % 6 for n in found(again, [0, 0, 0, 0, 1.0, 0], NEW)} == {4}
    again.close()


def test_what_is_written_and_deleted_meanwhile_is_right_afterwards(tmp_path: Path) -> None:
    store = filled(tmp_path)
    calls = 0

    def embed(texts: Sequence[str]) -> list[list[float]]:
        nonlocal calls
        calls += 1
        if calls == 2:
            add(store, [COUNT, COUNT + 1])
            store.forget("a", ids=[1, 2 * NOTES_AT_ONCE])
        return new_vectors(texts)

    reembed(store, NEW, 6, embed)
    assert store.stat().items == COUNT
    with store.reading() as reader:
        (vectors,) = reader.sql.execute("SELECT count(*) FROM vectors").fetchone()
    assert vectors == COUNT
    store.close()


def test_an_interrupted_change_goes_on_where_it_was(tmp_path: Path) -> None:
    store = filled(tmp_path)
    given: list[str] = []

    def failing(texts: Sequence[str]) -> list[list[float]]:
        if given:
            raise RuntimeError("the machine went down")
        given.extend(texts)
        return new_vectors(texts)

    with pytest.raises(RuntimeError):
        reembed(store, NEW, 6, failing)
    store.close()
    store = Store(tmp_path, dimensions=4)
    assert len(found(store, [1.0, 0, 0, 0], OLD)) == 3
    assert reembed(store, NEW, 6, new_vectors) == COUNT - NOTES_AT_ONCE
    assert reembed(store, NEW, 6, new_vectors) == 0
    store.close()


def test_vectors_of_the_model_before_are_refused_after_the_change(tmp_path: Path) -> None:
    store = filled(tmp_path)
    other = Store(tmp_path, dimensions=4)  # another process's
    reembed(store, NEW, 6, new_vectors)
    for one in (store, other):
        with pytest.raises(SyscallError) as refusal:
            add(one, [COUNT], model=OLD)
        assert refusal.value.code in ("busy", "invalid")
        add(one, [COUNT], model=NEW)
        assert found(one, [0, 0, 0, 0, 1.0, 0], NEW)
    assert other.dimensions == 6
    other.close()
    store.close()


def test_of_the_same_width_a_query_of_the_model_before_is_refused_too(tmp_path: Path) -> None:
    store = filled(tmp_path)
    reembed(store, NEW, 4, lambda texts: [old_vector(text) for text in texts])
    with pytest.raises(SyscallError, match="changed") as refusal:
        found(store, [1.0, 0, 0, 0], OLD)
    assert refusal.value.code == "busy"
    assert refusal.value.is_retryable
    store.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    store = filled(tmp_path)
    lock = FileLock.take(tmp_path / LOCK_FILE)
    assert lock is not None
    with pytest.raises(SyscallError, match="another process"):
        reembed(store, NEW, 6, new_vectors)
    lock.release()
    assert reembed(store, NEW, 6, new_vectors) == COUNT
    store.close()


def test_a_change_to_yet_another_model_begins_again(tmp_path: Path) -> None:
    store = filled(tmp_path)

    def failing(texts: Sequence[str]) -> list[list[float]]:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        reembed(store, NEW, 6, failing)
    other = VectorModel(identity="other", source="other").text
    assert reembed(store, other, 6, new_vectors) == COUNT
    store.close()


def test_a_folder_without_a_store_was_made_with_nothing(tmp_path: Path) -> None:
    assert made_with(tmp_path) is None
    (tmp_path / "notes.db").write_text("no database")
    assert made_with(tmp_path) is None
    assert parse_model("of another program") is None
