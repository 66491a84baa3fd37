"""New notes are found, told apart and forgotten before they are in the indexes, and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmos.memory import fresh
from llmos.memory.fresh import Digests, reached, settle_all
from llmos.memory.query import Query
from llmos.memory.store import Store
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError

DIMENSIONS = 2

WORDS = ("pump", "valve", "leak", "oil", "the", "pumps leaking")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes that take in some notes now and some later, also in small stores."""
    monkeypatch.setattr(fresh, "FRESH_WORDS", 4)
    monkeypatch.setattr(fresh, "FRESH_ENTRIES", 6)
    monkeypatch.setattr(fresh, "FEW_WORDED", 0)


def put(store: Store, *texts: str, namespace: str = "a", **fields: Any) -> list[int]:
    notes = [Note(text=text, **fields) for text in texts]
    return list(store.remember(namespace, notes, [[1.0, 0.0]] * len(texts)).ids)


def find(store: Store, text: str, **how: Any) -> list[tuple[str, float]]:
    how.setdefault("mode", "lexical")
    query = Query(text=text, vector=[1.0, 0.0], namespaces=["a"], k=50, **how)
    return [(hit.text, hit.score) for hit in store.retrieve(query).hits]


def texts(store: Store, text: str, **how: Any) -> list[str]:
    return sorted(found for found, _ in find(store, text, **how))


def test_words_are_entered_together_and_found_before(store: Store) -> None:
    for number in range(5):
        put(store, f"pump {number}")
        assert len(find(store, "pumps")) == number + 1
    with store.reading() as reader:
        assert reached(reader.sql) == (4, 0, 5)


def test_a_long_text_is_entered_at_once(store: Store) -> None:
    put(store, "pump " * fresh.FRESH_CHARACTERS)
    with store.reading() as reader:
        assert reached(reader.sql).worded == 1


def test_flush_enters_everything(store: Store) -> None:
    put(store, "pump", metadata={"n": 1})
    store.flush()
    with store.reading() as reader:
        assert reached(reader.sql) == (1, 1, 1)
    assert texts(store, "pump", where={"n": 1}) == ["pump"]


def test_scores_are_the_same_before_and_after(store: Store) -> None:
    put(store, "the pump", "oil for the pump, the pump and the valve", "leak", "a leak of oil")
    put(store, "pumps: the pump", "the valve has a leak, a leak")
    before = {query: find(store, query) for query in ("pump", "oil leak", "the", "valves leaks")}
    store.flush()
    for query, found in before.items():
        after = dict(find(store, query))
        for text, score in found:
            if text in ("pumps: the pump", "the valve has a leak, a leak"):
                assert score == pytest.approx(after[text], rel=1e-6), query


def test_what_is_forgotten_is_not_found_by_anything(store: Store) -> None:
    ids = put(store, *(f"pump {number}" for number in range(6)), metadata={"n": 1})
    ids += put(store, "pump 6", metadata={"n": 1})
    assert store.forget("a", ids=[ids[0], ids[6]]).count == 2
    kept = [f"pump {number}" for number in range(1, 6)]
    assert texts(store, "pump") == texts(store, "pump", where={"n": 1}) == kept
    assert store.check().problems == ()
    assert put(store, "pump 0", "pump 6", metadata={"n": 1}) == [8, 9]


def test_duplicates_are_seen_in_both_places(store: Store) -> None:
    first = [put(store, f"pump {number}")[0] for number in range(9)]
    assert [put(store, f"pump {number}")[0] for number in range(9)] == first


def test_another_process_s_notes_are_seen(store: Store) -> None:
    other = Store(store.folder, dimensions=2)
    first = put(other, "pump")
    assert put(store, "pump") == first
    second = put(store, "valve")
    assert put(other, "valve", "oil") == [*second, 3]
    assert texts(store, "oil valve") == ["oil", "valve"]
    other.close()


def test_what_was_undone_is_no_duplicate(store: Store) -> None:
    with pytest.raises(SyscallError):
        store.remember(
            "a", [Note(text="pump"), Note(text="part", parent=99)], [[1.0, 0.0], [1.0, 0.0]]
        )
    assert put(store, "valve", "pump") == [1, 2]
    assert put(store, "pump") == [2]


def test_digests_with_the_same_start_are_told_apart(store: Store) -> None:
    put(store, "pump", "valve")
    with store._database.transaction() as sql:
        for note, digest in ((1, b"12345678aaaaaaaa"), (2, b"12345678bbbbbbbb")):
            sql.execute("UPDATE notes SET digest = ? WHERE id = ?", (digest, note))
        settle_all(sql)
    with store.reading() as reader:
        wanted = [b"12345678bbbbbbbb", b"12345678cccccccc"]
        found = Digests().find(reader.sql, wanted, reached(reader.sql))
    assert found == {b"12345678bbbbbbbb": 2}


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(st.sampled_from(WORDS), min_size=1, max_size=3)),
        st.tuples(st.just("forget"), st.integers(0, 30)),
        st.just(("flush",)),
    ),
    max_size=25,
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(_STEPS)
def test_whatever_was_done_the_indexes_agree_with_the_notes(
    tmp_path_factory: pytest.TempPathFactory, steps: Sequence[Any]
) -> None:
    store = Store(tmp_path_factory.mktemp("store"), dimensions=2)
    held: dict[int, str] = {}
    for number, step in enumerate(steps):
        match step:
            case ("put", words):
                text = f"{' '.join(words)} {number % 7}"
                note = store.remember(
                    "a", [Note(text=text, metadata={"n": number % 7})], [[1.0, 0.0]]
                ).ids[0]
                assert (note in held) == (text in held.values())
                held[note] = text
            case ("forget", place) if held:
                gone = sorted(held)[place % len(held)]
                store.forget("a", ids=[gone])
                del held[gone]
            case ("flush",):
                store.flush()
            case _:
                continue
        wanted = sorted(text for text in held.values() if "pump" in text)
        assert texts(store, "pump") == wanted
        if any(text.endswith("3") for text in held.values()):
            wanted = sorted(text for text in held.values() if text.endswith("3"))
            assert texts(store, "x", mode="dense", where={"n": 3}) == wanted
    assert store.check().problems == ()
    store.close()
