"""The long-term store: what is remembered is found, what is forgotten is not."""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmos.memory.ingest.manifest import begin
from llmos.memory.query import Query
from llmos.memory.store import Store
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Hit

if TYPE_CHECKING:
    from tests.memory.conftest import Clock

DIMENSIONS = 8


def vector(angle: float) -> list[float]:
    """A unit vector in a plane; close angles are close in meaning."""
    return [math.cos(angle), math.sin(angle), *[0.0] * (DIMENSIONS - 2)]


def put(store: Store, text: str, angle: float = 0.0, namespace: str = "a", **fields: Any) -> int:
    """Remember one note; its id."""
    remembered = store.remember(namespace, [Note(text=text, **fields)], [vector(angle)])
    return remembered.ids[0]


def find(
    store: Store,
    query: str = "anything",
    angle: float = 0.0,
    *,
    k: int = 10,
    mode: Any = "dense",
    namespaces: Sequence[str] = ("a",),
    where: dict[str, Any] | None = None,
) -> list[Hit]:
    found = store.retrieve(
        Query(
            text=query,
            vector=vector(angle),
            k=k,
            mode=mode,
            namespaces=namespaces,
            where=where or {},
        )
    )
    return list(found.hits)


def texts(hits: Sequence[Hit]) -> list[str]:
    return [hit.text for hit in hits]


# --- remembering and finding ---


def test_what_is_remembered_comes_back_whole(store: Store) -> None:
    note = Note(text="Paris is in France", metadata={"lang": "en"}, source="geo.md", position=4)
    remembered = store.remember("a", [note], [vector(0)])
    (hit,) = find(store)
    assert hit.id == remembered.ids[0]
    assert (hit.text, hit.namespace, hit.metadata) == (note.text, "a", {"lang": "en"})
    assert (hit.source, hit.position, hit.created_at) == ("geo.md", 4, 1000.0)
    assert hit.score == pytest.approx(1.0)


def test_dense_search_orders_by_cosine(store: Store) -> None:
    for angle in (1.0, 0.2, 2.0, 0.5):
        put(store, f"at {angle}", angle)
    hits = find(store, k=3)
    assert texts(hits) == ["at 0.2", "at 0.5", "at 1.0"]
    assert hits[0].score == hits[0].parts["cosine"] == pytest.approx(math.cos(0.2))


def test_lexical_search_orders_by_words_and_folds_word_forms_and_accents(store: Store) -> None:
    put(store, "The kernel schedules many agents")
    put(store, "A café serves coffee")
    put(store, "Agents schedule agents and agents")
    assert texts(find(store, "scheduling agent", mode="lexical")) == [
        "Agents schedule agents and agents",
        "The kernel schedules many agents",
    ]
    assert texts(find(store, "CAFE", mode="lexical")) == ["A café serves coffee"]
    assert find(store, "?!", mode="lexical") == []


def test_lexical_search_needs_no_vector(store: Store) -> None:
    put(store, "The kernel")
    hits = store.retrieve(Query(text="kernel", k=1, mode="lexical", namespaces=["a"])).hits
    assert texts(hits) == ["The kernel"]


def test_hybrid_search_ranks_first_what_both_find(store: Store) -> None:
    put(store, "a distant note about kernels", 2.0)
    put(store, "something else altogether", 0.0)
    put(store, "the kernel", 0.1)
    hits = find(store, "kernel", mode="hybrid")
    assert hits[0].text == "the kernel"
    assert hits[0].parts["dense_rank"] == 2 and hits[0].parts["lexical_rank"] == 1
    assert {"cosine", "bm25"} <= hits[0].parts.keys()
    assert hits[0].score == hits[0].parts["fused"] > 0.9
    assert len(hits) == 3


def test_hybrid_search_without_any_word_is_by_meaning_alone(store: Store) -> None:
    put(store, "far", 1.0)
    put(store, "near", 0.1)
    assert texts(find(store, "...", mode="hybrid")) == ["near", "far"]


# --- namespaces, filters, expiry ---


def test_namespaces_do_not_see_each_other(store: Store) -> None:
    put(store, "the secret of a", namespace="a")
    mine = put(store, "the secret of b", namespace="b")
    for mode in ("dense", "lexical", "hybrid"):
        assert texts(find(store, "secret", mode=mode, namespaces=["b"])) == ["the secret of b"]
        assert find(store, "secret", mode=mode, namespaces=[]) == []
        assert len(find(store, "secret", mode=mode, namespaces=["a", "b"])) == 2
    assert store.forget("a", ids=[mine]).count == 0
    assert len(find(store, namespaces=["b"])) == 1


@pytest.mark.parametrize("name", ["a\0b", ""])
def test_a_namespace_that_sqlite_would_confuse_is_refused(store: Store, name: str) -> None:
    for attempt in (
        lambda: put(store, "x", namespace=name),
        lambda: find(store, namespaces=[name]),
    ):
        with pytest.raises(SyscallError) as caught:
            attempt()
        assert caught.value.fields == {"field": "namespace"}


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_filters_apply_before_the_k_are_chosen(store: Store, mode: str) -> None:
    for number in range(30):
        put(store, f"kernel note {number}", 0.01 * number, metadata={"chosen": number >= 25})
    hits = find(store, "kernel", k=5, mode=mode, where={"chosen": True})
    assert sorted(texts(hits)) == [f"kernel note {number}" for number in range(25, 30)]


@pytest.mark.parametrize(
    ("where", "is_match"),
    [
        ({"n": 1}, True),
        ({"n": 1.0}, True),
        ({"n": True}, False),
        ({"n": "1"}, False),
        ({"b": True}, True),
        ({"b": 1}, False),
        ({"none": None}, True),
        ({"list": [1, {"x": 2}]}, True),
        ({"list": [1]}, False),
        ({"long": "x" * 5000}, True),
        ({"long": "x" * 4999}, False),
        ({'odd".$[0] key\0': "o'k\0"}, True),
        ({"n": 1, "b": True}, True),
        ({"n": 1, "b": False}, False),
    ],
)
def test_metadata_equality_is_that_of_json(
    store: Store, where: dict[str, Any], is_match: bool
) -> None:
    metadata = {
        "n": 1,
        "b": True,
        "none": None,
        "list": [1, {"x": 2.0}],
        "long": "x" * 5000,
        'odd".$[0] key\0': "o'k\0",
    }
    put(store, "note", metadata=metadata)
    assert bool(find(store, where=where)) == is_match


def test_expired_notes_are_not_found_and_leave(store: Store, clock: Clock) -> None:
    put(store, "brief kernel", expires_at=1010.0)
    put(store, "lasting kernel")
    assert len(find(store, "kernel", mode="hybrid")) == 2
    clock.now = 1010.0
    for mode in ("dense", "lexical", "hybrid"):
        assert texts(find(store, "kernel", mode=mode)) == ["lasting kernel"]
    assert store.stat().items == 1
    put(store, "another")
    assert store.stat().index_bytes == 2 * (4 * DIMENSIONS + 48)


# --- duplicates ---


def test_an_exact_duplicate_is_stored_once(store: Store) -> None:
    notes = [Note(text="x", metadata={"a": 1, "b": 2}), Note(text="x", metadata={"b": 2.0, "a": 1})]
    remembered = store.remember("a", notes, [vector(0), vector(1)])
    assert remembered.ids[0] == remembered.ids[1] and remembered.duplicates == 1
    again = store.remember("a", notes[:1], [vector(0)])
    assert (again.ids, again.duplicates) == (remembered.ids[:1], 1)
    assert store.stat().items == 1


@pytest.mark.parametrize(
    "other",
    [
        {"text": "y"},
        {"namespace": "b"},
        {"source": "s"},
        {"metadata": {"k": 1}},
        {"text": "x "},
    ],
)
def test_whatever_differs_makes_another_note(store: Store, other: dict[str, Any]) -> None:
    put(store, "x")
    put(store, **{"text": "x", **other})
    assert store.stat().items == 2


def test_a_duplicate_lasts_as_long_as_the_longer_of_the_two(store: Store, clock: Clock) -> None:
    put(store, "longer", expires_at=1010.0)
    put(store, "longer", expires_at=1020.0)
    put(store, "for ever", expires_at=1010.0)
    put(store, "for ever")
    put(store, "still", expires_at=1020.0)
    put(store, "still", expires_at=1010.0)
    clock.now = 1015.0
    assert len(find(store)) == 3
    clock.now = 1025.0
    assert texts(find(store)) == ["for ever"]


def test_an_expired_note_is_no_duplicate(store: Store, clock: Clock) -> None:
    old = put(store, "x", expires_at=1010.0)
    clock.now = 1020.0
    new = store.remember("a", [Note(text="x")], [vector(0)])
    assert new.duplicates == 0 and new.ids[0] > old
    assert texts(find(store)) == ["x"]


# --- forgetting ---


def test_forgetting_takes_every_selector_together(store: Store) -> None:
    kept = put(store, "1", source="s", metadata={"k": 1})
    gone = put(store, "2", source="s", metadata={"k": 2})
    put(store, "3", source="t", metadata={"k": 2})
    assert store.forget("a", source="s", where={"k": 2}).count == 1
    assert gone not in {hit.id for hit in find(store)}
    assert store.forget("a", ids=[kept, gone, 999]).count == 1
    assert texts(find(store, "1 2 3", mode="hybrid")) == ["3"]
    assert store.forget("a", source="nothing").count == 0


def test_forgetting_without_a_selector_is_refused(store: Store) -> None:
    with pytest.raises(SyscallError) as caught:
        store.forget("a")
    assert caught.value.code == "invalid"


def test_an_id_is_never_given_twice(store: Store) -> None:
    first = put(store, "x")
    store.forget("a", ids=[first])
    assert put(store, "x") > first


# --- what is refused ---


@pytest.mark.parametrize(
    ("vectors", "field"),
    [
        ([[1.0]], "vectors"),
        ([[math.nan] * DIMENSIONS], "vectors"),
        ([[0.0] * DIMENSIONS], "vectors"),
        ([], "vectors"),
    ],
)
def test_wrong_vectors_are_refused_and_nothing_is_stored(
    store: Store, vectors: list[list[float]], field: str
) -> None:
    with pytest.raises(SyscallError) as caught:
        store.remember("a", [Note(text="x")], vectors)
    assert (caught.value.code, caught.value.fields) == ("invalid", {"field": field})
    assert store.stat().items == 0


@pytest.mark.parametrize("text", [" \n", "x" * 1_000_001, "long " * 20_000_000])
def test_a_blank_or_endless_text_is_refused(store: Store, text: str) -> None:
    with pytest.raises(SyscallError) as caught:
        put(store, text)
    assert (caught.value.code, caught.value.fields) == ("invalid", {"field": "text"})
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("note", "field"),
    [
        ({"metadata": {"x": math.nan}}, "metadata"),
        ({"metadata": {"x": object()}}, "metadata"),
        ({"position": 2**70}, "position"),
    ],
)
def test_a_bad_note_keeps_the_good_ones_out(store: Store, note: dict[str, Any], field: str) -> None:
    notes = [Note(text="good"), Note(text="bad", **note)]
    with pytest.raises(SyscallError) as caught:
        store.remember("a", notes, [vector(0), vector(1)])
    assert (caught.value.code, caught.value.fields) == ("invalid", {"field": field})
    assert store.stat().items == 0


def test_searching_by_meaning_needs_a_right_vector(store: Store) -> None:
    for wrong in (None, [1.0], [math.inf] * DIMENSIONS):
        with pytest.raises(SyscallError) as caught:
            store.retrieve(Query(text="x", vector=wrong, namespaces=["a"]))
        assert caught.value.fields == {"field": "vector"}


def test_an_index_without_room_loses_nothing_and_is_made_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, "before")

    def fail(*_: object) -> None:
        raise MemoryError("no room for the vector")

    with monkeypatch.context() as patch:
        patch.setattr(store._nearest.index, "add", fail)
        patch.setattr("llmos.memory.nearest._FAR_BEHIND", 1)
        put(store, "kept", 1.0)
        store._later.wait()
    assert "behind" in caplog.text
    assert texts(find(store)) == ["before", "kept"]
    put(store, "after", 1.5)
    assert texts(find(store)) == ["before", "kept", "after"]


def test_of_a_file_whose_notes_are_forgotten_nothing_is_known(store: Store) -> None:
    put(store, "one", source="/a.md")
    put(store, "two", source="/a.md")
    put(store, "three", source="/b.md")

    def known(sql: sqlite3.Connection) -> None:
        for path in ("/a.md", "/b.md"):
            begin(sql, "a", path)

    store.record(known)
    store.forget("a", ids=[1])
    assert paths(store) == ["/a.md", "/b.md"]
    store.forget("a", source="/a.md")
    assert paths(store) == ["/b.md"]
    store.forget("a", everything=True)
    assert paths(store) == []


def paths(store: Store) -> list[str]:
    with store.reading() as reader:
        return [path for (path,) in reader.sql.execute("SELECT path FROM documents ORDER BY path")]


def test_a_closed_store_says_so_and_closes_twice(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(SyscallError, match="closed"):
        find(store)


# --- open, close, counts ---


def test_stat_counts_by_namespace(store: Store) -> None:
    put(store, "1", namespace="a")
    put(store, "2", namespace="b")
    put(store, "3", namespace="b")
    info = store.stat()
    assert (info.items, info.dimensions, info.index) == (3, DIMENSIONS, "flat")
    assert [(n.namespace, n.items) for n in info.namespaces] == [("a", 1), ("b", 2)]
    assert info.database_bytes > 0 and info.index_bytes == store.index_bytes() > 0
    assert store.stat(["a", "none"]).items == 1


@pytest.mark.parametrize("end", [Store.close, Store.flush])
def test_a_reopened_store_finds_the_same(tmp_path: Path, end: Callable[[Store], None]) -> None:
    folder = tmp_path / "again"
    first = Store(folder, dimensions=DIMENSIONS)
    for number in range(20):
        put(first, f"note {number}", 0.1 * number)
    first.forget("a", ids=[3])
    before = find(first, "note 7", mode="hybrid")
    end(first)
    first.close()
    second = Store(folder, dimensions=DIMENSIONS)
    assert find(second, "note 7", mode="hybrid") == before
    second.close()


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("?")])
def test_a_lost_or_damaged_index_is_made_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "damaged"
    first = Store(folder, dimensions=DIMENSIONS)
    for number in range(20):
        put(first, f"note {number}", 0.1 * number)
    before = find(first, k=20)
    first.close()
    damage(folder / "vectors.faiss")
    second = Store(folder, dimensions=DIMENSIONS)
    assert find(second, k=20) == before
    second.close()
    assert (folder / "vectors.faiss").stat().st_size > 20 * 4 * DIMENSIONS


def test_an_index_that_is_behind_is_caught_up(tmp_path: Path) -> None:
    folder = tmp_path / "behind"
    first = Store(folder, dimensions=DIMENSIONS)
    put(first, "old", 1.0)
    put(first, "forgotten", 2.0)
    first.flush()
    saved = (folder / "vectors.faiss").read_bytes()
    first.forget("a", ids=[2])
    put(first, "new", 0.5)
    first.close()
    (folder / "vectors.faiss").write_bytes(saved)
    second = Store(folder, dimensions=DIMENSIONS)
    assert texts(find(second)) == ["new", "old"]
    second.close()


# --- threads ---


def test_threads_lose_nothing_and_find_their_own(store: Store) -> None:
    starting = threading.Barrier(8)

    def work(worker: int) -> None:
        starting.wait()
        for number in range(25):
            kept = put(store, f"w{worker} n{number}", 0.01 * number, namespace=f"w{worker}")
            found = find(store, f"n{number}", k=50, namespaces=[f"w{worker}"])
            assert kept in {hit.id for hit in found}
            gone = put(store, f"temporary {worker} {number}", namespace="shared")
            assert store.forget("shared", ids=[gone]).count == 1

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, worker) for worker in range(8)]:
            done.result()
    counts = {stat.namespace: stat.items for stat in store.stat().namespaces}
    assert counts == {f"w{worker}": 25 for worker in range(8)}
    assert len(store._nearest.index) == 200


# --- properties ---


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(min_size=1).filter(str.strip), query=st.text(min_size=1))
def test_any_text_can_be_stored_and_any_query_asked(store: Store, text: str, query: str) -> None:
    kept = put(store, text)
    for mode in ("dense", "lexical", "hybrid"):
        find(store, query, mode=mode)
    (hit,) = [hit for hit in find(store, text, k=1000) if hit.id == kept]
    assert hit.text == text
    assert store.forget("a", ids=[kept]).count == 1


def test_dense_search_agrees_with_numpy(store: Store) -> None:
    random = np.random.default_rng(3)
    matrix = random.standard_normal((300, DIMENSIONS))
    notes = [Note(text=f"n{i}", metadata={"third": i % 3}) for i in range(300)]
    ids = store.remember("a", notes, matrix.tolist()).ids
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    for _ in range(20):
        query = random.standard_normal(DIMENSIONS)
        order = [ids[i] for i in np.argsort(-(unit @ query)) if i % 3 == 1][:7]
        hits = store.retrieve(
            Query(
                text="x",
                vector=query.tolist(),
                k=7,
                mode="dense",
                namespaces=["a"],
                where={"third": 1},
            )
        ).hits
        assert [hit.id for hit in hits] == order


def test_a_store_is_not_closed_under_a_call(tmp_path: Path) -> None:
    store = Store(tmp_path, dimensions=2)
    closing = threading.Thread(target=store.close)
    with store.reading() as reader:
        closing.start()
        while store._is_open:  # pyright: ignore[reportPrivateUsage]
            threading.Event().wait(0.001)
        assert reader.sql.execute("SELECT count(*) FROM notes").fetchone() == (0,)
        assert closing.is_alive()
        with pytest.raises(SyscallError, match="is closed"):
            store.stat()
    closing.join()
