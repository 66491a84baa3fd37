"""Full-text queries from what people type, the weight of age, and hits unlike each other."""

from __future__ import annotations

import itertools
import sqlite3

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmos.memory.rank import MAX_QUERY_TERMS, diverse, faded, match_any, query_terms


@pytest.fixture(scope="module")
def full_text() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE notes USING fts5 (text, tokenize = 'porter')")
    connection.execute("INSERT INTO notes VALUES ('the kernel schedules agents')")
    yield connection
    connection.close()


def test_a_query_is_for_any_of_its_words_each_once() -> None:
    terms = query_terms("What Kernel runs agents, kernel?")
    assert terms == ["kernel", "runs", "agents"]
    assert match_any(terms) == '"kernel" OR "runs" OR "agents"'


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("What is the capital of Chad?", ["capital", "chad"]),
        ("to be or not to be", ["to", "be", "or", "not"]),
        ("what does the WHO say about IT", ["who", "say", "it"]),
        ("WHAT IS THE CAPITAL", ["capital"]),
        ("it's", ["it", "s"]),
    ],
)
def test_function_words_count_only_where_they_are_all_or_are_names(
    text: str, terms: list[str]
) -> None:
    assert query_terms(text) == terms


@pytest.mark.parametrize("text", ["", "?!", '"""', "* ( ) : ^ -", "\0", "\ud800"])
def test_text_without_words_is_no_query(text: str) -> None:
    assert query_terms(text) == []


def test_a_very_long_question_is_asked_by_its_first_words() -> None:
    assert query_terms(" ".join(f"w{i}" for i in range(5000))) == [
        f"w{i}" for i in range(MAX_QUERY_TERMS)
    ]


@given(st.text(max_size=200))
@example('kernel" OR "x')
@example("NEAR(a b, 2) AND NOT text:kernel*")
@example("a\0b")
@example("____ ² ١ ﷺ")
def test_no_text_makes_the_full_text_search_raise(full_text: sqlite3.Connection, text: str) -> None:
    if terms := query_terms(text):
        query = match_any(terms)
        full_text.execute("SELECT rowid FROM notes WHERE notes MATCH ?", (query,)).fetchall()


# --- age and likeness ---


@given(st.floats(0, 1e9), st.floats(1, 1e9))
def test_a_score_is_halved_with_each_half_life(age: float, half_life: float) -> None:
    once, later = faded(1.0, age, half_life), faded(1.0, age + half_life, half_life)
    assert later == pytest.approx(once / 2)


def test_age_never_raises_a_score_and_the_future_has_none() -> None:
    assert faded(-0.5, 1e6, 10) == -0.5
    assert faded(0.8, -50, 10) == 0.8


def _units(seed: int, count: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


_RELEVANCE = st.lists(st.floats(-1, 1), min_size=1, max_size=12)


@given(_RELEVANCE, st.integers(0, 99), st.integers(1, 15), st.floats(0, 1))
def test_a_diverse_selection_keeps_the_best_first_and_repeats_nothing(
    relevance: list[float], seed: int, k: int, diversity: float
) -> None:
    chosen = diverse(relevance, _units(seed, len(relevance)), k, diversity=diversity)
    assert relevance[chosen[0].place] == max(relevance)
    assert len({one.place for one in chosen}) == len(chosen) == min(k, len(relevance))
    scores = [one.score for one in chosen]
    assert all(a >= b - 1e-6 for a, b in itertools.pairwise(scores))


@given(_RELEVANCE, st.integers(0, 99))
def test_without_diversity_the_order_is_that_of_relevance(
    relevance: list[float], seed: int
) -> None:
    chosen = diverse(relevance, _units(seed, len(relevance)), 12, diversity=0.0)
    picked = [relevance[one.place] for one in chosen]
    assert picked == pytest.approx(sorted(relevance, reverse=True))


def test_a_repetition_gives_way_to_something_else() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    chosen = diverse([0.9, 0.89, 0.5], vectors, 2, diversity=0.6)
    assert [one.place for one in chosen] == [0, 2]


def test_nothing_is_chosen_of_nothing() -> None:
    assert diverse([], np.zeros((0, 4), dtype=np.float32), 3, diversity=0.5) == []
