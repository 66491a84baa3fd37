"""Decay: what is unimportant and unused fades, what is used or important stays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.memory.decay import DAY_S, DEFAULT, Decay, lasts_s, strength
from llmos.memory.query import Query
from llmos.memory.store import Store
from llmos.syscalls.calls import Note

if TYPE_CHECKING:
    from tests.memory.conftest import Clock

DIMENSIONS = 2

_IMPORTANCE = st.floats(0, 1)
_IDLE = st.floats(0, 1e9)
_USES = st.integers(0, 1000)


@given(_IMPORTANCE, _IDLE, _USES)
def test_strength_never_exceeds_importance_and_uses_never_weaken(
    importance: float, idle_s: float, uses: int
) -> None:
    now = strength(importance, idle_s, uses, DEFAULT.half_life_s)
    assert 0 <= now <= importance
    assert strength(importance, idle_s, uses + 1, DEFAULT.half_life_s) >= now
    assert strength(importance, idle_s + 1, uses, DEFAULT.half_life_s) <= now


@given(st.floats(0.06, 0.99), st.integers(0, 50))
def test_a_note_lasts_until_its_strength_is_at_the_floor(importance: float, uses: int) -> None:
    lasts = lasts_s(importance, uses)
    assert strength(importance, lasts, uses, DEFAULT.half_life_s) == pytest.approx(DEFAULT.floor)


def test_what_is_said_of_the_defaults_is_so() -> None:
    assert round(lasts_s(0.5, 0) / DAY_S) == 100
    assert round(lasts_s(0.1, 0) / DAY_S) == 30
    assert lasts_s(1.0, 0) == math.inf and strength(1.0, 1e12, 0, 1.0) == 1.0


@pytest.fixture
def clock(clock: Clock) -> Clock:
    clock.now = 0.0
    return clock


def put(store: Store, text: str, namespace: str = "a", **fields: Any) -> int:
    return store.remember(namespace, [Note(text=text, **fields)], [[1.0, 0.0]]).ids[0]


def kept(store: Store, *namespaces: str) -> set[str]:
    query = Query(text="x", vector=[1.0, 0.0], mode="dense", namespaces=namespaces or ["a"], k=100)
    return {hit.text for hit in store.retrieve(query).hits}


def test_what_ended_processes_left_is_forgotten_a_while_after_its_newest(
    store: Store, clock: Clock
) -> None:
    put(store, "old", namespace="process-a-1")
    put(store, "begun", namespace="process-a-2")
    put(store, "shared", namespace="processes")
    clock.now = 5 * DAY_S
    put(store, "going on", namespace="process-a-2")
    clock.now = 8 * DAY_S
    assert store.forget_left_behind(9 * DAY_S).count == 0
    assert store.forget_left_behind(7 * DAY_S).count == 1
    everywhere = kept(store, "process-a-1", "process-a-2", "processes")
    assert everywhere == {"begun", "going on", "shared"}


def test_only_unimportant_happenings_fade(store: Store, clock: Clock) -> None:
    put(store, "chat", importance=0.3)
    put(store, "dialogue", importance=0.3, source="context:1f")
    put(store, "promise", importance=1.0)
    put(store, "fact", importance=0.3, kind="semantic")
    put(store, "skill", importance=0.3, kind="procedural")
    put(store, "page of a document", importance=0.3, source="book")
    clock.now = 365 * DAY_S
    assert store.decay().count == 2
    assert kept(store) == {"promise", "fact", "skill", "page of a document"}


def test_what_is_found_now_and_then_stays(store: Store, clock: Clock) -> None:
    put(store, "used")
    put(store, "unused", namespace="b")
    for _ in range(8):
        clock.now += 30 * DAY_S
        assert "used" in kept(store)
    assert store.decay().count == 1
    assert kept(store, "a", "b") == {"used"}


def test_uses_are_known_after_the_store_was_closed(tmp_path: Path, clock: Clock) -> None:
    store = Store(tmp_path / "m", dimensions=2, clock=clock)
    put(store, "used")
    clock.now = 90 * DAY_S
    kept(store)
    store.close()
    clock.now = 150 * DAY_S
    store = Store(tmp_path / "m", dimensions=2, clock=clock)
    assert store.decay().count == 0
    store.close()


def test_namespaces_that_are_not_named_keep_everything(store: Store, clock: Clock) -> None:
    put(store, "one")
    put(store, "two", namespace="b")
    clock.now = 365 * DAY_S
    assert store.decay(namespaces=["a"]).count == 1
    assert kept(store, "a", "b") == {"two"}


def test_a_whole_lasts_as_long_as_its_parts(store: Store, clock: Clock) -> None:
    whole = put(store, "whole", importance=0.1)
    put(store, "part", importance=1.0, parent=whole)
    clock.now = 365 * DAY_S
    assert store.decay().count == 0


def test_how_fast_is_the_callers_choice(store: Store, clock: Clock) -> None:
    put(store, "chat")
    clock.now = 3600
    assert store.decay(Decay(half_life_s=60, floor=0.01)).count == 1
