"""The index that follows the database: other processes' writes, builds meanwhile, isolation."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmos.memory import changes, nearest, vectors_build
from llmos.memory.folder import BUILD_LOCK_FILE, FileLock
from llmos.memory.query import Query
from llmos.memory.store import Store
from llmos.memory.vectors import ListIndex
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Hit

DIMENSIONS = 16
RANDOM = np.random.default_rng(4)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes with lists from 300 vectors on."""
    monkeypatch.setattr(nearest, "MOST_FLAT", 300)
    monkeypatch.setattr(vectors_build, "SEARCHES", 64)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path, dimensions=DIMENSIONS)
    yield opened
    opened.close()


def points(count: int) -> np.ndarray:
    return RANDOM.standard_normal((count, DIMENSIONS))


def put(store: Store, matrix: np.ndarray, namespace: str = "a", **fields: Any) -> tuple[int, ...]:
    first = RANDOM.integers(0, 1 << 40)
    notes = [Note(text=f"note {first} {number}", **fields) for number in range(len(matrix))]
    return store.remember(namespace, notes, matrix.tolist()).ids


def find(store: Store, query: np.ndarray, k: int = 10, **fields: Any) -> tuple[Hit, ...]:
    asked = {"namespaces": ["a"], "mode": "dense", **fields}
    return store.retrieve(Query(text="", vector=query.tolist(), k=k, **asked)).hits


def kind(store: Store) -> str:
    return store.stat().index


def wait_for_build(store: Store) -> None:
    store.stat()  # takes in what was written, unless another thread does
    store._nearest._consider_building()  # which that thread may not have come to yet
    with store._nearest._starting:
        builder = store._nearest._builder
    assert builder is not None
    builder.join()


# --- other processes ---

OTHER = """
import sys
from pathlib import Path
from llmos.memory.query import Query
from llmos.memory.store import Store
from llmos.syscalls.calls import Note

store = Store(Path(sys.argv[1]), dimensions=16)
for line in sys.stdin:
    word, _, rest = line.strip().partition(" ")
    if word == "remember":
        print(*store.remember("a", [Note(text=rest)], [[1.0] * 16]).ids, flush=True)
    elif word == "forget":
        print(store.forget("a", ids=[int(rest)]).count, flush=True)
    elif word == "find":
        query = Query(text="", vector=[1.0] * 16, k=100, mode="dense", namespaces=["a"])
        print(*sorted(hit.id for hit in store.retrieve(query).hits), flush=True)
store.close()
"""


class Other:
    """A second process with the same store."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, line: str) -> list[int]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return [int(word) for word in self._process.stdout.readline().split()]

    def close(self) -> int:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
        return self._process.returncode


def test_two_processes_see_each_others_writes_at_once(store: Store, tmp_path: Path) -> None:
    other = Other(tmp_path)
    one = np.ones(DIMENSIONS)
    mine = list(put(store, points(3)))
    assert other.ask("find") == mine
    (theirs,) = other.ask("remember from the other")
    assert [hit.id for hit in find(store, one, 1)] == [theirs]
    assert sorted(hit.id for hit in find(store, one, 100)) == [*mine, theirs]
    assert store.forget("a", ids=[mine[0]]).count == 1
    assert other.ask("find") == [mine[1], mine[2], theirs]
    assert other.ask(f"forget {theirs}") == [1]
    assert sorted(hit.id for hit in find(store, one, 100)) == mine[1:]
    assert other.close() == 0
    assert store.check().problems == ()


def test_whoever_is_too_far_behind_for_the_log_compares_everything(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "KEPT_CHANGES", 0)
    late = Store(tmp_path, dimensions=DIMENSIONS)
    ids = put(store, points(20))
    assert len(find(late, np.ones(DIMENSIONS), 50)) == 20
    store.forget("a", ids=ids[:15])
    put(store, points(2))
    store.flush()
    with store.reading() as reader:
        assert reader.sql.execute("SELECT count(*) FROM changes").fetchone() == (0,)
    assert len(find(late, np.ones(DIMENSIONS), 50)) == 7
    assert late.check().problems == ()
    late.close()


def test_threads_of_two_stores_write_and_search_together(store: Store, tmp_path: Path) -> None:
    twin = Store(tmp_path, dimensions=DIMENSIONS)

    def work(own: Store, namespace: str) -> None:
        for _ in range(15):
            ids = put(own, points(3), namespace)
            assert set(ids) <= {
                hit.id for hit in find(own, points(1)[0], 100, namespaces=[namespace])
            }
            own.forget(namespace, ids=ids[:1])

    threads = [
        threading.Thread(target=work, args=(own, f"{name}{number}"))
        for name, own in (("x", store), ("y", twin))
        for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own in (store, twin):
        assert {count.items for count in own.stat().namespaces} == {30}
        assert own.check().problems == ()
    twin.close()


def test_an_index_of_before_a_restore_is_never_used(tmp_path: Path) -> None:
    """Ids that are given again after a backup was put back mean other notes."""
    first = Store(tmp_path / "memory", dimensions=DIMENSIONS)
    put(first, points(5))
    first.backup(tmp_path / "copy")
    put(first, points(5))
    first.close()
    for path in (tmp_path / "memory").glob("notes.db*"):
        path.unlink()
    shutil.copy(tmp_path / "copy" / "notes.db", tmp_path / "memory" / "notes.db")
    restored = Store(tmp_path / "memory", dimensions=DIMENSIONS)
    matrix = points(7)
    ids = put(restored, matrix)
    # As after a kill: another one opens what is on the disk now.
    later = Store(tmp_path / "memory", dimensions=DIMENSIONS)
    for note, vector in zip(ids, matrix, strict=True):
        assert find(later, vector, 1)[0].id == note
    later.close()
    restored.close()


# --- building ---


@pytest.mark.usefixtures("small")
def test_an_index_with_lists_is_built_in_the_background_and_again_as_it_grows(
    store: Store, tmp_path: Path
) -> None:
    put(store, points(299))
    assert kind(store) == "flat"
    put(store, points(1))
    wait_for_build(store)
    info = store.stat()
    assert (info.index, info.recall_sample) == ("ivf", 64) and info.index_recall >= 0.98
    first = store._nearest.index
    put(store, points(700))
    wait_for_build(store)
    second = store._nearest.index
    assert isinstance(first, ListIndex) and isinstance(second, ListIndex)
    assert second.lists > first.lists and len(second) == 1000
    assert store.check().problems == ()
    store.close()
    again = Store(tmp_path, dimensions=DIMENSIONS)
    assert kind(again) == "ivf" and again.stat().index_recall == info_recall(second)
    assert again.check().problems == ()
    again.close()


def info_recall(index: ListIndex) -> float:
    return index.recall.share


@pytest.mark.usefixtures("small")
def test_what_is_written_during_a_build_is_in_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    build = nearest.build

    def slow(*arguments: Any, **options: Any) -> Any:
        built = build(*arguments, **options)
        begun.set()
        assert go_on.wait(10)
        return built

    monkeypatch.setattr(nearest, "build", slow)
    ids = put(store, points(300))
    assert begun.wait(10)
    assert store.stat().is_building
    store.forget("a", ids=ids[:50])
    new = put(store, points(40))
    assert kind(store) == "flat" and len(find(store, points(1)[0], 500)) == 290
    go_on.set()
    wait_for_build(store)
    assert kind(store) == "ivf"
    found = {hit.id for hit in find(store, points(1)[0], 500)}
    assert found == {*ids[50:], *new}
    assert store.check().problems == ()


@pytest.mark.usefixtures("small")
def test_a_build_that_fails_leaves_the_index_that_was(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(nearest, "build", fail)
        put(store, points(300))
        wait_for_build(store)
    assert "could not be built" in caplog.text
    assert kind(store) == "flat" and len(find(store, points(1)[0])) == 10
    store.build()
    assert kind(store) == "ivf"


@pytest.mark.usefixtures("small")
def test_an_index_that_cannot_be_saved_serves_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(nearest, "save", fail)
        put(store, points(300))
        wait_for_build(store)
    assert kind(store) == "ivf" and "not saved" in caplog.text


@pytest.mark.usefixtures("small")
def test_closing_ends_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, dimensions=DIMENSIONS)
    begun = threading.Event()
    build = nearest.build

    def endless(*arguments: Any, should_stop: Any, **options: Any) -> Any:
        begun.set()
        while not should_stop():
            threading.Event().wait(0.001)
        return build(*arguments, should_stop=should_stop, **options)

    monkeypatch.setattr(nearest, "build", endless)
    put(store, points(300))
    assert begun.wait(10)
    store.close()
    assert not store._nearest.is_building


@pytest.mark.usefixtures("small")
def test_one_process_builds_at_a_time(store: Store, tmp_path: Path) -> None:
    lock = FileLock.take(tmp_path / BUILD_LOCK_FILE)
    assert lock is not None
    put(store, points(300))
    wait_for_build(store)
    assert kind(store) == "flat"
    with pytest.raises(SyscallError) as caught:
        store.build()
    assert caught.value.code == "busy" and caught.value.is_retryable
    lock.release()
    store.build()
    assert kind(store) == "ivf"


@pytest.mark.usefixtures("small")
def test_what_another_process_has_built_is_read_from_its_file(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = Store(tmp_path, dimensions=DIMENSIONS)
    put(store, points(300))
    wait_for_build(store)
    assert kind(store) == "ivf"
    put(store, points(20))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was built twice")

    monkeypatch.setattr(nearest, "build", never)
    assert kind(twin) in ("flat", "ivf")
    wait_for_build(twin)
    assert kind(twin) == "ivf" and twin.check().problems == ()
    assert len(find(twin, points(1)[0], 500)) == 320
    twin.close()


def test_a_build_of_few_changes_nothing(store: Store) -> None:
    put(store, points(10))
    store.build()
    assert kind(store) == "flat"


# --- filters ---


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("share", [0.5, 0.05, 0.005])
def test_a_filter_on_lists_finds_k_and_almost_all_of_the_nearest(
    store: Store, share: float
) -> None:
    matrix = points(2000)
    chosen = RANDOM.random(2000) < share
    for part in (True, False):
        put(store, matrix[chosen == part], metadata={"chosen": part})
    store.build()
    assert kind(store) == "ivf"
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    order = np.concatenate((np.flatnonzero(chosen), np.flatnonzero(~chosen)))
    found = total = 0
    for query in points(20):
        scores = unit[chosen] @ query
        k = min(10, len(scores))
        true = {int(place) for place in np.argsort(-scores)[:k]}
        hits = find(store, query, 10, where={"chosen": True})
        assert len(hits) == k
        found += len(true & {hit.id - 1 for hit in hits})
        total += k
    assert len(order) == 2000 and found / total >= 0.95


@pytest.mark.usefixtures("small")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "forget", "find", "build"]), st.integers(0, 2)),
        max_size=30,
    )
)
def test_no_search_crosses_a_namespace_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    store = Store(tmp_path_factory.mktemp("memory"), dimensions=DIMENSIONS)
    known: dict[str, set[int]] = {f"n{number}": set() for number in range(3)}
    for word, number in steps:
        name = f"n{number}"
        if word == "add":
            known[name] |= set(put(store, points(60), name))
        elif word == "forget" and known[name]:
            gone = sorted(known[name])[::2]
            assert store.forget(name, ids=gone).count == len(gone)
            known[name] -= set(gone)
        elif word == "build":
            store.build()
        for one, ids in known.items():
            hits = find(store, points(1)[0], 1000, namespaces=[one])
            assert {hit.id for hit in hits} == ids
    store.close()
