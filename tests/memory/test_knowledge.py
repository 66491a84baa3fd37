"""Facts: their history in any order of telling, and walks along them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.memory.filters import Filter
from llmos.memory.knowledge import entity_key, find_told, tell, touching, walk
from llmos.memory.schema import SCHEMA
from llmos.syscalls.results import Fact, RelatedFact

NOW = 1000.0


class Book:
    """Notes with facts in a database of the store's own tables."""

    def __init__(self) -> None:
        self.sql = sqlite3.connect(":memory:", isolation_level=None)
        self.sql.execute("PRAGMA foreign_keys = ON")
        self.sql.executescript(SCHEMA)
        self._count = 0

    def tell(
        self,
        subject: str,
        relation: str,
        object: str,
        *,
        since: float = 0.0,
        is_single: bool = True,
        namespace: str = "a",
    ) -> int:
        fact = Fact(subject=subject, relation=relation, object=object, is_single=is_single)
        known = find_told(self.sql, namespace, fact, since, NOW)
        if known is not None:
            return known
        self._count += 1
        text = f"{subject} {relation} {object}."
        self.sql.execute(
            "INSERT INTO notes"
            " (id, namespace, text, metadata, kind, created_at, valid_from, digest)"
            " VALUES (?, ?, ?, '{}', 'semantic', ?, ?, CAST(? AS BLOB))",
            (self._count, namespace, text, since, since, f"{namespace} {text} {since}"),
        )
        tell(self.sql, self._count, namespace, fact, since)
        return self._count

    def forget(self, note: int) -> None:
        self.sql.execute("DELETE FROM notes WHERE id = ?", (note,))

    def valid(self, at: float, subject: str = "ann", namespace: str = "a") -> set[str]:
        chosen = Filter([namespace], NOW, at=at)
        return {one.told[2] for one in touching(self.sql, [subject], chosen, 1000)}

    def walk(self, entity: str, hops: int = 1, limit: int = 100, **how: Any) -> list[RelatedFact]:
        chosen = Filter(how.pop("namespaces", ["a"]), NOW, **how)
        found, _ = walk(
            entity, hops, limit, lambda names, most: touching(self.sql, names, chosen, most)
        )
        return found


@pytest.fixture
def book() -> Iterator[Book]:
    opened = Book()
    yield opened
    opened.sql.close()


def test_a_new_object_supersedes_the_old_one_and_both_stay_in_history(book: Book) -> None:
    oslo = book.tell("Ann", "lives in", "Oslo", since=10)
    rome = book.tell("Ann", "lives in", "Rome", since=20)
    assert book.valid(15) == {"Oslo"}
    assert book.valid(25) == {"Rome"}
    history = {one.note: one for one in book.walk("ann", with_history=True)}
    assert (history[oslo].valid_to, history[oslo].superseded_by) == (20, rome)
    assert (history[rome].valid_to, history[rome].superseded_by) == (None, None)


def test_a_fact_about_the_past_takes_its_place_in_the_past(book: Book) -> None:
    book.tell("Ann", "lives in", "Rome", since=20)
    book.tell("Ann", "lives in", "Oslo", since=10)
    assert (book.valid(15), book.valid(25)) == ({"Oslo"}, {"Rome"})


def test_of_two_told_for_the_same_time_the_later_told_holds(book: Book) -> None:
    book.tell("Ann", "lives in", "Oslo", since=10)
    book.tell("Ann", "lives in", "Rome", since=10)
    assert book.valid(10) == {"Rome"}


def test_objects_of_a_relation_that_has_many_stand_side_by_side(book: Book) -> None:
    book.tell("Ann", "knows", "Bob", is_single=False)
    book.tell("Ann", "knows", "Cid", is_single=False)
    assert book.valid(5) == {"Bob", "Cid"}


def test_what_is_known_is_not_told_again_whatever_its_case_and_spaces(book: Book) -> None:
    first = book.tell("Ann", "lives in", "Oslo")
    assert book.tell(" ANN ", "Lives  in", "oslo", since=5) == first


def test_who_moves_back_is_told_again(book: Book) -> None:
    first = book.tell("Ann", "lives in", "Oslo", since=1)
    book.tell("Ann", "lives in", "Rome", since=2)
    again = book.tell("Ann", "lives in", "Oslo", since=3)
    assert again != first and book.valid(4) == {"Oslo"}


def test_facts_of_other_namespaces_are_neither_superseded_nor_seen(book: Book) -> None:
    book.tell("Ann", "lives in", "Oslo", since=1, namespace="a")
    book.tell("Ann", "lives in", "Rome", since=2, namespace="b")
    assert book.valid(5, namespace="a") == {"Oslo"}
    assert [one.object for one in book.walk("Ann", hops=3, namespaces=["b"])] == ["Rome"]


_TOLD = st.tuples(st.sampled_from(["Oslo", "Rome", "Bonn"]), st.integers(0, 12))


_FORGOTTEN = st.integers(0, 7).map(lambda number: ("", number))


@settings(max_examples=300, deadline=None)
@given(st.lists(_TOLD | _FORGOTTEN, max_size=12))
def test_a_relation_has_at_all_times_what_was_told_last_for_them_and_not_forgotten(
    steps: list[tuple[str, int]],
) -> None:
    book = Book()
    begun: list[tuple[int, int, str]] = []  # since when, in which note, where

    def held(at: int) -> set[str]:
        return {place for _, _, place in sorted(one for one in begun if one[0] <= at)[-1:]}

    try:
        for place, number in steps:
            if not place:
                book.forget(number)
                begun = [one for one in begun if one[1] != number]
            elif held(number) == {place}:
                book.tell("Ann", "lives in", place, since=number)
            else:
                note = book.tell("Ann", "lives in", place, since=number)
                begun.append((number, note, place))
        assert [book.valid(at) for at in range(13)] == [held(at) for at in range(13)]
        assert {one.note for one in book.walk("ann", with_history=True)} == {
            note for _, note, _ in begun
        }
    finally:
        book.sql.close()


def test_when_a_fact_is_forgotten_the_one_before_holds_again(book: Book) -> None:
    oslo = book.tell("Ann", "lives in", "Oslo", since=1)
    rome = book.tell("Ann", "lives in", "Rome", since=2)
    bonn = book.tell("Ann", "lives in", "Bonn", since=3)
    book.forget(rome)
    assert [book.valid(at) for at in (1, 2, 3)] == [{"Oslo"}, {"Oslo"}, {"Bonn"}]
    (first, *_) = book.walk("ann", with_history=True)
    assert (first.note, first.valid_to, first.superseded_by) == (oslo, 3, bonn)
    book.forget(bonn)
    assert book.valid(9) == {"Oslo"}


def test_a_walk_goes_both_ways_and_tells_how_far_each_fact_is(book: Book) -> None:
    book.tell("Ann", "works at", "Acme")
    book.tell("Bob", "works at", "Acme")
    book.tell("Bob", "owns", "a boat")
    book.tell("Cid", "owns", "a car")
    found = book.walk("ann", hops=3)
    assert [(one.subject, one.hops) for one in found] == [("Ann", 1), ("Bob", 2), ("Bob", 3)]
    assert [one.text for one in book.walk("A BOAT")] == ["Bob owns a boat."]
    assert book.walk("nobody", hops=3) == []


def test_a_walk_along_time_sees_what_was_so_then(book: Book) -> None:
    book.tell("Ann", "works at", "Acme", since=1)
    book.tell("Acme", "is in", "Oslo", since=1)
    book.tell("Ann", "works at", "Bank", since=5)
    assert {one.object for one in book.walk("Ann", hops=2, at=2)} == {"Acme", "Oslo"}
    assert {one.object for one in book.walk("Ann", hops=2, at=6)} == {"Bank"}


def test_a_walk_says_when_it_was_cut(book: Book) -> None:
    for number in range(5):
        book.tell("Ann", "knows", f"friend {number}", is_single=False)
    chosen = Filter(["a"], NOW)

    def load(names: Any, most: int) -> Any:
        return touching(book.sql, names, chosen, most)

    assert [len(walk("ann", 1, limit, load)[0]) for limit in (3, 5)] == [3, 5]
    assert [walk("ann", 1, limit, load)[1] for limit in (3, 5)] == [True, False]


_PAIR = st.tuples(st.integers(0, 6), st.integers(0, 6))


@settings(max_examples=100, deadline=None)
@given(st.lists(_PAIR, max_size=12, unique=True), st.integers(1, 4))
def test_a_walk_finds_exactly_the_facts_within_its_steps(
    pairs: list[tuple[int, int]], hops: int
) -> None:
    book = Book()
    try:
        whole = nx.Graph([(f"e{a}", f"e{b}") for a, b in pairs])
        whole.add_node("e0")
        for one, other in pairs:
            book.tell(f"E{one}", f"to {other}", f"E{other}", is_single=False)
        steps = nx.single_source_shortest_path_length(whole, "e0")
        expected = {
            (f"E{a}", f"E{b}"): min(steps[f"e{a}"], steps[f"e{b}"]) + 1
            for a, b in pairs
            if f"e{a}" in steps and min(steps[f"e{a}"], steps[f"e{b}"]) < hops
        }
        found = book.walk("E0", hops=hops, limit=1000)
        assert {(one.subject, one.object): one.hops for one in found} == expected
    finally:
        book.sql.close()


@given(st.text(max_size=20))
def test_a_key_is_its_own_key(name: str) -> None:
    assert entity_key(entity_key(name)) == entity_key(name)
