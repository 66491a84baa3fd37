"""Sets of notes that a search may return: remembered, and always as the database has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.memory import allowed as module
from llmos.memory.allowed import Allowed, AllowedSets
from llmos.memory.changes import version
from llmos.memory.filters import Filter
from llmos.memory.notes import select_ids
from llmos.memory.store import Store
from llmos.syscalls.calls import Note

if TYPE_CHECKING:
    from tests.memory.conftest import Clock

DIMENSIONS = 4


def members(one: Allowed) -> list[int]:
    return np.flatnonzero(np.unpackbits(one.bits, bitorder="little")).tolist()


@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 200)))))
def test_a_set_is_a_set(steps: list[tuple[bool, set[int]]]) -> None:
    one, expected = Allowed.of(np.empty(0, dtype=np.int64)), set[int]()
    for is_addition, ids in steps:
        if is_addition:
            one.add(np.array(sorted(ids - expected), dtype=np.int64))
            expected |= ids
        else:
            one.remove(np.array(sorted(ids), dtype=np.int64))
            expected -= ids
    assert members(one) == sorted(expected) and one.count == len(expected)
    assert one.ids is not None and sorted(one.ids.tolist()) == sorted(expected)


def test_a_copy_without_some_leaves_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LISTED", 3)
    one = Allowed.of(np.array([1, 9, 20]))
    less = one.without(np.array([9, 300]))
    assert members(less) == [1, 20] and members(one) == [1, 9, 20]
    one.add(np.array([70]))
    assert one.ids is None and members(one) == [1, 9, 20, 70]


@pytest.fixture
def clock(clock: Clock) -> Clock:
    clock.now = 100.0
    return clock


def put(store: Store, text: str, namespace: str = "a", **fields: Any) -> int:
    return store.remember(namespace, [Note(text=text, **fields)], [[1.0, 2.0, 3.0, 4.0]]).ids[0]


def agrees(store: Store, sets: AllowedSets, chosen: Filter) -> list[int]:
    """What the sets say, which is what the database says."""
    with store.reading() as reader:
        found = members(sets.find(reader.sql, chosen, version(reader.sql)))
        assert found == sorted(select_ids(reader.sql, chosen).tolist())
    return found


def test_a_set_follows_what_is_added_and_deleted(store: Store) -> None:
    sets = AllowedSets()
    chosen = Filter(["a"], 100.0, {"n": 1})
    first = put(store, "x", metadata={"n": 1})
    put(store, "y", metadata={"n": 2})
    put(store, "z", "b", metadata={"n": 1})
    assert agrees(store, sets, chosen) == [first]
    second = put(store, "w", metadata={"n": 1})
    assert agrees(store, sets, chosen) == [first, second]
    store.forget("a", ids=[first])
    sets.remove(np.array([first]))
    assert agrees(store, sets, chosen) == [second]


def test_time_hides_and_shows_without_any_write(store: Store, clock: Clock) -> None:
    sets = AllowedSets()
    put(store, "soon gone", expires_at=110.0)
    put(store, "not yet so", valid_from=120.0)
    put(store, "always")
    for now, expected in ((100.0, [1, 3]), (109.0, [1, 3]), (110.0, [3]), (125.0, [2, 3])):
        assert agrees(store, sets, Filter(["a"], now)) == expected
    assert agrees(store, sets, Filter(["a"], 105.0, at=121.0)) == [1, 2, 3]
    assert agrees(store, sets, Filter(["a"], 105.0, with_history=True)) == [1, 2, 3]
    assert agrees(store, sets, Filter(["a"], 111.0, with_history=True)) == [2, 3]
    assert agrees(store, sets, Filter(["a"], 105.0)) == [1, 3], "an earlier time again"


def test_an_update_is_seen(store: Store) -> None:
    sets = AllowedSets()
    put(store, "x", expires_at=110.0)
    assert agrees(store, sets, Filter(["a"], 115.0)) == []
    put(store, "x")  # the same, for ever
    assert agrees(store, sets, Filter(["a"], 115.0)) == [1]


def test_the_sets_used_longest_ago_are_let_go(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_SETS", 2)
    sets = AllowedSets()
    put(store, "x", metadata={"n": 1})
    for number in (1, 2, 3, 1):
        agrees(store, sets, Filter(["a"], 100.0, {"n": number}))
    assert len(sets._sets) == 2


def test_what_is_deleted_while_a_set_is_made_is_not_in_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = AllowedSets()
    put(store, "x")
    put(store, "y")
    look = module.ids_between

    def look_and_delete(*arguments: Any) -> Any:
        found = look(*arguments)
        sets.remove(np.array([1]))
        return found

    monkeypatch.setattr(module, "ids_between", look_and_delete)
    with store.reading() as reader:
        found = sets.find(reader.sql, Filter(["a"], 100.0), version(reader.sql))
    assert members(found) == [2] and found.count == 1
    assert sets._removed == []
