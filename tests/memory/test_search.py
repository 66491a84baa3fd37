"""Searching a real store: filters, ranking, time, diversity, reranking and what stands around."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmos.memory.filters import Filter
from llmos.memory.query import Query
from llmos.memory.reader import Reader
from llmos.memory.search import search
from llmos.memory.store import Store
from llmos.memory.words import FreshWords
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Fact, Hit

if TYPE_CHECKING:
    from tests.memory.conftest import Clock

DIMENSIONS = 8
DAY_S = 86_400.0


def vector(angle: float) -> list[float]:
    """A unit vector in a plane; close angles are close in meaning."""
    return [math.cos(angle), math.sin(angle), *[0.0] * (DIMENSIONS - 2)]


def put(store: Store, text: str, angle: float = 0.0, namespace: str = "a", **fields: Any) -> int:
    """Remember one note; its id."""
    return store.remember(namespace, [Note(text=text, **fields)], [vector(angle)]).ids[0]


def find(
    store: Store, text: str = "anything", angle: float = 0.0, *, mode: Any = "dense", **how: Any
) -> list[Hit]:
    how.setdefault("namespaces", ["a"])
    how.setdefault("k", 10)
    return list(store.retrieve(Query(text=text, vector=vector(angle), mode=mode, **how)).hits)


def texts(hits: Sequence[Hit]) -> list[str]:
    return [hit.text for hit in hits]


# --- filters ---


def test_kinds_are_a_filter_and_every_hit_says_its_own(store: Store) -> None:
    put(store, "what happened")
    put(store, "what is so", kind="semantic", importance=0.9)
    put(store, "how it is done", kind="procedural")
    (hit,) = find(store, kinds=["semantic"])
    assert (hit.text, hit.kind, hit.importance) == ("what is so", "semantic", 0.9)
    assert len(find(store, kinds=["episodic", "procedural"])) == 2


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_conditions_choose_before_the_ranking_does(store: Store, mode: str) -> None:
    for year in range(2000, 2030):
        put(store, f"report number {year}", angle=year / 1000, metadata={"year": year})
    hits = find(store, "report", 2.0, mode=mode, where={"year": {"$gte": 2027}}, k=3)
    assert sorted(hit.metadata["year"] for hit in hits) == [2027, 2028, 2029]


def test_a_field_that_no_note_has_is_refused_and_the_nearest_named(store: Store) -> None:
    put(store, "x", metadata={"author": "Ann"})
    for where in ({"auhtor": "Ann"}, {"auhtor": {"$ne": "Bob"}}):
        with pytest.raises(SyscallError, match="'author'"):
            find(store, where=where)


def test_a_known_field_without_a_match_finds_nothing(store: Store) -> None:
    put(store, "x", metadata={"author": "Ann"})
    assert find(store, where={"author": "Bob"}) == []


def test_an_empty_namespace_knows_no_fields_and_refuses_none(store: Store) -> None:
    assert find(store, where={"author": "Ann"}) == []


def test_as_many_namespaces_as_there_are_can_be_searched(store: Store) -> None:
    put(store, "here", namespace="space 39999")
    names = [f"space {number}" for number in range(40_000)]
    assert texts(find(store, namespaces=names)) == ["here"]


_NAMESPACES = ("a", "b", "c")
_ITEM = st.tuples(
    st.sampled_from(_NAMESPACES),
    st.sampled_from(["episodic", "semantic", "procedural"]),
    st.integers(0, 5),
    st.floats(0, math.pi),
    st.none() | st.integers(990, 1010),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(_ITEM, max_size=20),
    st.sets(st.sampled_from(_NAMESPACES), min_size=1),
    st.none() | st.lists(st.sampled_from(["episodic", "semantic"]), min_size=1, unique=True),
    st.integers(0, 5),
    st.sampled_from(["dense", "lexical", "hybrid"]),
    st.sampled_from([{}, {"diversity": 0.5}, {"recency_s": 10.0}]),
)
def test_filters_lose_nothing_that_passes_and_never_cross_a_namespace(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[tuple[str, str, int, float, float | None]],
    namespaces: set[str],
    kinds: list[str] | None,
    least: int,
    mode: str,
    how: dict[str, float],
) -> None:
    store = Store(tmp_path_factory.mktemp("m"), dimensions=DIMENSIONS, clock=lambda: 1000.0)
    try:
        for name in _NAMESPACES:
            some = [(n, item) for n, item in enumerate(items) if item[0] == name]
            if some:
                notes = [
                    Note(
                        text=f"word {number}",  # other numbers: no near-duplicates
                        kind=kind,
                        metadata={"size": size, "at": number},
                        valid_from=since,
                    )
                    for number, (_, kind, size, _, since) in some
                ]
                store.remember(name, notes, [vector(item[3]) for _, item in some])
        wanted = {
            number
            for number, (space, kind, size, _, since) in enumerate(items)
            if space in namespaces
            and (kinds is None or kind in kinds)
            and size >= least
            and (since is None or since <= 1000)
        }
        hits = find(
            store,
            "word",
            mode=mode,
            namespaces=sorted(namespaces),
            kinds=kinds,
            where={"size": {"$gte": least}},
            k=30,
            **how,
        )
        assert {hit.metadata["at"] for hit in hits} == wanted
        assert len(hits) == len(wanted) and {hit.namespace for hit in hits} <= namespaces
        assert all(one.score >= two.score - 1e-6 for one, two in itertools.pairwise(hits))
    finally:
        store.close()


# --- words ---


@pytest.fixture
def words(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Twenty notes of which all have one word and few have others, in a store that is large."""
    monkeypatch.setattr("llmos.memory.search.MOST_MATCHES", 5)
    for number in range(20):
        rare = "pump" if number < 3 else "valve" if number == 9 else "door"
        put(store, f"report {number} {rare}", angle=number / 10, source=str(number))
    return store


@pytest.mark.parametrize("mode", ["lexical", "hybrid"])
def test_rare_words_find_what_they_would_without_the_frequent_ones(words: Store, mode: str) -> None:
    hits = find(words, "report pump valve", mode=mode, k=4, angle=3.0)
    assert {hit.source for hit in hits if "bm25" in hit.parts} == {"0", "1", "2", "9"}
    pumps = [hit.parts["bm25"] for hit in hits if "pump" in hit.text]
    assert len(pumps) == 3 and all(score > 0 for score in pumps)


def test_where_rare_words_find_too_few_the_frequent_ones_do(words: Store) -> None:
    assert len(find(words, "report pump", mode="lexical", k=10)) == 10
    assert len(find(words, "report door", mode="lexical", k=20)) == 20


def test_a_word_that_nobody_has_hides_no_other(words: Store) -> None:
    assert len(find(words, "report zebra ²", mode="hybrid", k=20)) == 20
    assert all("bm25" in hit.parts for hit in find(words, "report zebra ²", mode="hybrid", k=20))


# --- time ---


def test_what_was_so_is_found_at_its_time_and_in_history_only(store: Store, clock: Clock) -> None:
    fact = {"subject": "Ann", "relation": "lives in"}
    oslo = put(store, "Ann lives in Oslo.", fact=Fact(object="Oslo", **fact), valid_from=10)
    clock.now = 2000
    remembered = store.remember(
        "a", [Note(text="Ann lives in Rome.", fact=Fact(object="Rome", **fact))], [vector(0)]
    )
    rome = remembered.ids[0]
    assert remembered.superseded == (oslo,)
    assert texts(find(store)) == ["Ann lives in Rome."]
    assert texts(find(store, at=1500)) == ["Ann lives in Oslo."]
    past = {hit.id: hit for hit in find(store, with_history=True)}
    assert (past[oslo].valid_from, past[oslo].valid_to, past[oslo].superseded_by) == (
        10,
        2000,
        rome,
    )
    assert (past[rome].valid_from, past[rome].valid_to) == (2000, None)


def test_what_will_be_so_is_not_found_before(store: Store, clock: Clock) -> None:
    put(store, "The office moves.", valid_from=5000)
    assert find(store) == []
    assert len(find(store, at=5000)) == len(find(store, with_history=True)) == 1


def test_of_two_alike_the_newer_comes_first_when_age_counts(store: Store, clock: Clock) -> None:
    put(store, "old and exact", angle=0.0)
    clock.now += 10 * DAY_S
    put(store, "new and near", angle=0.3)
    assert texts(find(store)) == ["old and exact", "new and near"]
    new, old = find(store, recency_s=5 * DAY_S)
    assert (new.text, new.parts["recency"]) == ("new and near", 1.0)
    assert old.parts["recency"] == pytest.approx(0.25)
    assert old.score == pytest.approx(0.25)


# --- order ---


def test_a_reranker_has_the_last_word_on_relevance(store: Store) -> None:
    for number in range(8):
        put(store, f"text {number}", angle=number / 10)
    asked: list[str] = []

    def reranker(query: str, found: Sequence[str]) -> list[float]:
        asked.append(query)
        return [1.0 if text == "text 6" else 0.0 for text in found]

    first, second = find(store, "which?", reranker=reranker, k=2)
    assert asked == ["which?"]
    assert (first.text, first.score, first.parts["rerank"]) == ("text 6", 1.0, 1.0)
    assert second.text == "text 0"  # of equals, the order before


def test_a_search_that_finds_nothing_asks_no_reranker(store: Store) -> None:
    def reranker(query: str, found: Sequence[str]) -> list[float]:
        raise AssertionError("there is nothing to rerank")

    assert find(store, reranker=reranker) == []


def test_diversity_passes_over_repetitions(store: Store) -> None:
    put(store, "the pump leaks", angle=0.0)
    put(store, "a leaking pump", angle=0.01)
    put(store, "the valve is new", angle=1.2)
    assert texts(find(store, k=2)) == ["the pump leaks", "a leaking pump"]
    best, other = find(store, k=2, diversity=0.7)
    assert (best.text, other.text) == ("the pump leaks", "the valve is new")
    assert other.parts["likeness"] == pytest.approx(math.cos(1.2), abs=1e-3)
    assert other.parts["relevance"] == pytest.approx(math.cos(1.2), abs=1e-3)


def test_hybrid_hits_carry_every_part_of_their_score(store: Store) -> None:
    put(store, "the pump leaks", angle=0.1)
    (hit,) = find(store, "pump", mode="hybrid", recency_s=10, diversity=0.1)
    assert hit.parts.keys() == {
        *("cosine", "bm25", "dense_rank", "lexical_rank", "fused"),
        *("recency", "relevance", "likeness"),
    }


@pytest.mark.parametrize("how", [{}, {"recency_s": 5.0}, {"diversity": 0.5}])
def test_what_is_deleted_during_a_search_makes_room_for_another(
    store: Store, how: dict[str, float]
) -> None:
    for number in range(4):
        put(store, f"text {number}", angle=number / 10)

    class Disturbed(Reader):
        """A reader whose first ranking is out of date when it arrives."""

        is_calm = False

        def nearest(self, unit: Any, chosen: Filter, k: int) -> list[tuple[int, float]]:
            ranked = super().nearest(unit, chosen, k)
            if not self.is_calm:
                self.is_calm = True
                store.forget("a", ids=[1])
            return ranked

    unit = np.array([vector(0.0)], dtype=np.float32)
    query = Query(text="x", mode="dense", namespaces=["a"], k=2, **how)
    with store.reading() as plain:
        disturbed = Disturbed(
            plain.sql,
            nearest=lambda _, *asked: plain.nearest(*asked),
            fresh=FreshWords(),
            dimensions=DIMENSIONS,
            now=plain.now,
        )
        found = search(disturbed, query, unit, plain.now)
    assert [hit.id for hit in found.hits] == [2, 3]


# --- around a hit ---


def _book(store: Store) -> None:
    whole = put(store, "The whole chapter.", angle=3.0)
    for line in (3, 10, 12, 40):
        put(
            store,
            f"line {line}",
            angle=line / 100,
            source="book",
            position=line,
            parent=whole,
            metadata={"line": line},
        )
    put(store, "other source", angle=2.0, source="letter", position=11)


def test_neighbours_are_the_next_in_the_source_whatever_the_gaps(store: Store) -> None:
    _book(store)
    (hit,) = find(store, k=1, where={"line": 12}, neighbours=2)
    assert [(one.place, one.text) for one in hit.context] == [
        (-2, "line 3"),
        (-1, "line 10"),
        (1, "line 40"),
    ]


def test_the_parent_comes_first_in_the_context(store: Store) -> None:
    _book(store)
    (hit,) = find(store, k=1, where={"line": 3}, neighbours=1, with_parent=True)
    assert [one.text for one in hit.context] == ["The whole chapter.", "line 10"]
    assert hit.context[0].id == hit.parent


def test_facts_bring_along_those_that_touch_them_and_no_others(store: Store) -> None:
    def tell(subject: str, relation: str, object: str, namespace: str = "a") -> None:
        fact = Fact(subject=subject, relation=relation, object=object)
        put(store, f"{subject} {relation} {object}.", namespace=namespace, fact=fact)

    tell("Ann", "works at", "Acme")
    tell("Acme", "is in", "Oslo")
    tell("Oslo", "lies in", "Norway")
    tell("Ann", "owns", "a boat")
    tell("Ann", "fears", "spiders", namespace="b")
    tell("Bob", "owns", "a car")
    (hit,) = find(store, "Acme works", mode="lexical", k=1, hops=1)
    assert [(one.how, one.place, one.text) for one in hit.context] == [
        ("related", 1, "Acme is in Oslo."),
        ("related", 1, "Ann owns a boat."),
    ]
    (hit,) = find(store, "Acme works", mode="lexical", k=1, hops=2)
    assert [one.text for one in hit.context][2:] == ["Oslo lies in Norway."]
    assert all(hit.context == () for hit in find(store, "owns", mode="lexical"))


def test_without_asking_there_is_no_context(store: Store) -> None:
    _book(store)
    assert all(hit.context == () for hit in find(store))


def test_what_has_expired_stands_around_nothing(store: Store, clock: Clock) -> None:
    whole = put(store, "whole", angle=2.0, expires_at=1500)
    put(store, "before", angle=1.0, source="s", position=1, expires_at=1500)
    put(store, "part", source="s", position=2, parent=whole)
    clock.now = 1600
    (hit,) = find(store, k=1, neighbours=1, with_parent=True)
    assert (hit.text, hit.context) == ("part", ())


def test_a_parent_in_another_namespace_is_refused(store: Store) -> None:
    secret = put(store, "secret", namespace="b")
    with pytest.raises(SyscallError, match="parent") as refused:
        put(store, "part", parent=secret)
    assert refused.value.code == "invalid"
    assert find(store) == []


def test_the_same_source_in_another_namespace_is_no_neighbour(store: Store) -> None:
    put(store, "secret", namespace="b", source="s", position=1)
    put(store, "mine", source="s", position=2)
    (hit,) = find(store, neighbours=3, namespaces=["a", "b"], k=1, kinds=["episodic"], angle=0.0)
    assert hit.context == ()


@given(st.integers(0, 20), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_neighbours_are_in_order_and_never_the_hit_itself(
    tmp_path_factory: pytest.TempPathFactory, wanted: int, seed: int
) -> None:
    positions = np.random.default_rng(seed).integers(0, 8, size=10).tolist()
    store = Store(tmp_path_factory.mktemp("m"), dimensions=DIMENSIONS, clock=lambda: 1.0)
    try:
        for number, position in enumerate(positions):
            put(store, f"n {number}", number / 10, source="s", position=position)
        for hit in find(store, neighbours=wanted):
            order = [(one.position, one.id) for one in hit.context]
            own = (hit.position, hit.id)
            assert order == sorted(order) and own not in order
            assert sum(one < own for one in order) == min(
                wanted, sum((p, i + 1) < own for i, p in enumerate(positions))
            )
    finally:
        store.close()
