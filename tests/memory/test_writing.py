"""How notes enter the store: what is there already, what is nearly there, what is new."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from llmos.memory.query import Query
from llmos.memory.store import Store
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Fact, Hit, Remembered

if TYPE_CHECKING:
    from tests.memory.conftest import Clock

DIMENSIONS = 2


def put(store: Store, *notes: tuple[Note, float], namespace: str = "a", **how: Any) -> Remembered:
    """Remember notes at angles; those within 18 degrees have a cosine above 0.95."""
    vectors = [[math.cos(angle), math.sin(angle)] for _, angle in notes]
    return store.remember(namespace, [note for note, _ in notes], vectors, **how)


def hits(store: Store, **how: Any) -> dict[int, Hit]:
    how.setdefault("with_history", True)
    query = Query(text="x", vector=[1.0, 0.0], mode="dense", namespaces=["a"], k=100, **how)
    return {hit.id: hit for hit in store.retrieve(query).hits}


def semantic(text: str, **fields: Any) -> Note:
    return Note(text=text, kind="semantic", **fields)


def lives(city: str, **fields: Any) -> Note:
    fact = Fact(subject="Ann", relation="lives in", object=city)
    return Note(text=f"Ann lives in {city}.", fact=fact, **fields)


def test_a_semantic_note_near_a_known_one_is_that_one(store: Store) -> None:
    first = put(store, (semantic("the pump leaks"), 0.0))
    again = put(store, (semantic("the pump is leaking"), 0.1))
    assert (again.ids, again.duplicates) == (first.ids, 1)


@pytest.mark.parametrize(
    ("text", "angle", "why"),
    [
        ("the pump never leaks", 0.1, "it is a denial"),
        ("the pump is leaking", 0.5, "it is too far"),
        ("2 pumps leak", 0.1, "it has a number"),
    ],
)
def test_what_says_something_else_is_new(store: Store, text: str, angle: float, why: str) -> None:
    put(store, (semantic("the pump leaks"), 0.0))
    assert put(store, (semantic(text), angle)).duplicates == 0, why


def test_another_kind_or_namespace_has_no_near_duplicate(store: Store) -> None:
    put(store, (Note(text="the pump leaks"), 0.0))
    assert put(store, (semantic("the pump is leaking"), 0.0)).duplicates == 0
    assert put(store, (semantic("the pump is leaking"), 0.0), namespace="b").duplicates == 0


def test_near_duplicates_of_one_call_are_one_note(store: Store) -> None:
    told = put(
        store,
        (semantic("the pump leaks"), 0.0),
        (semantic("the valve is new"), 1.5),
        (semantic("the pump is leaking"), 0.1),
    )
    assert told.ids[0] == told.ids[2] != told.ids[1]
    assert told.duplicates == 1


def test_the_caller_says_from_where_on_notes_are_the_same(store: Store) -> None:
    put(store, (Note(text="the pump leaks"), 0.0))
    near = (Note(text="the pump is leaking"), 0.1)
    assert put(store, near, merge_above=0.999).duplicates == 0
    assert put(store, (Note(text="the pump leaking"), 0.1), merge_above=0.9).duplicates == 1


def test_a_near_duplicate_lasts_longer_and_counts_more(store: Store, clock: Clock) -> None:
    (note,) = put(store, (semantic("the pump leaks", expires_at=1500, importance=0.2), 0.0)).ids
    put(store, (semantic("the pump is leaking", expires_at=3000, importance=0.7), 0.1))
    put(store, (semantic("the pump leaks", expires_at=100, importance=0.1), 0.1))
    clock.now = 2000
    assert hits(store)[note].importance == 0.7


def test_what_has_expired_is_no_duplicate(store: Store, clock: Clock) -> None:
    put(store, (semantic("the pump leaks", expires_at=1500), 0.0))
    clock.now = 2000
    assert put(store, (semantic("the pump is leaking"), 0.1)).duplicates == 0


def test_facts_are_compared_by_what_they_say_and_not_by_their_text(store: Store) -> None:
    first = put(store, (lives("Oslo"), 0.0))
    moved = put(store, (lives("Rome"), 0.0))
    assert moved.superseded == first.ids and moved.duplicates == 0


def test_the_same_words_about_another_time_are_another_fact(store: Store) -> None:
    (now,) = put(store, (lives("Oslo", valid_from=500), 0.0)).ids
    put(store, (lives("Rome", valid_from=300), 0.0))
    (then,) = put(store, (lives("Oslo", valid_from=100), 0.0)).ids
    assert then != now
    known = hits(store)
    assert (known[then].valid_from, known[then].valid_to) == (100, 300)
    assert [hit.text for hit in hits(store, with_history=False, at=150).values()] == [
        "Ann lives in Oslo."
    ]


def test_facts_of_one_call_follow_each_other(store: Store) -> None:
    told = put(store, (lives("Oslo"), 0.0), (lives("Rome"), 0.0), (lives("Oslo"), 0.0))
    assert told.superseded == told.ids[:2]
    assert [hit.id for hit in hits(store, with_history=False).values()] == [told.ids[2]]


def test_a_part_needs_its_whole_and_a_failure_stores_nothing(store: Store) -> None:
    with pytest.raises(SyscallError, match="parent") as refused:
        put(store, (Note(text="one"), 0.0), (Note(text="part", parent=99), 0.0))
    assert refused.value.fields["field"] == "parent"
    assert hits(store) == {}


def test_owners_keep_their_own_and_are_forgotten_by_name(store: Store) -> None:
    put(store, (Note(text="of Ann"), 0.0), owner="ann")
    put(store, (Note(text="of Bob"), 0.0), owner="bob")
    put(store, (Note(text="of Ann too"), 0.0), namespace="b", owner="ann")
    assert store.forget(["a", "b"], owner="ann").count == 2
    assert [hit.text for hit in hits(store).values()] == ["of Bob"]
    assert store.forget("a", everything=True).count == 1


def test_a_mistyped_field_does_not_forget_nothing_in_silence(store: Store) -> None:
    put(store, (Note(text="x", metadata={"author": "Ann"}), 0.0))
    with pytest.raises(SyscallError, match="did you mean 'author'"):
        store.forget("a", where={"autor": "Ann"})
