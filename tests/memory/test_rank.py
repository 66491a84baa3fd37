"""Full-text queries from what people type, and reciprocal rank fusion."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmos.memory.rank import MAX_QUERY_TERMS, fuse, match_query


@pytest.fixture(scope="module")
def full_text() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE notes USING fts5 (text, tokenize = 'porter')")
    connection.execute("INSERT INTO notes VALUES ('the kernel schedules agents')")
    yield connection
    connection.close()


def test_words_become_quoted_alternatives_without_repeats() -> None:
    assert match_query("What is a Kernel, what?") == '"what" OR "is" OR "a" OR "kernel"'


@pytest.mark.parametrize("text", ["", "?!", '"""', "* ( ) : ^ -", "\0", "\ud800"])
def test_text_without_words_is_no_query(text: str) -> None:
    assert match_query(text) is None


def test_a_very_long_question_is_asked_by_its_first_words() -> None:
    query = match_query(" ".join(f"w{i}" for i in range(5000)))
    assert query is not None and query.count(" OR ") == MAX_QUERY_TERMS - 1


@given(st.text(max_size=200))
@example('kernel" OR "x')
@example("NEAR(a b, 2) AND NOT text:kernel*")
@example("a\0b")
@example("____ ² ١ ﷺ")
def test_no_text_makes_the_full_text_search_raise(full_text: sqlite3.Connection, text: str) -> None:
    query = match_query(text)
    if query is not None:
        full_text.execute("SELECT rowid FROM notes WHERE notes MATCH ?", (query,)).fetchall()


def test_a_note_that_both_rankings_like_beats_the_first_of_one() -> None:
    fused = fuse({"dense": [1, 2, 3], "lexical": [4, 2]})
    assert [entry.id for entry in fused] == [2, 1, 4, 3]
    assert fused[0].ranks == {"dense": 2, "lexical": 2}
    assert fused[0].score == pytest.approx(2 / 62)


def test_an_empty_ranking_leaves_the_other_as_it_is() -> None:
    assert [entry.id for entry in fuse({"dense": [7, 5, 6], "lexical": []})] == [7, 5, 6]


@given(
    st.lists(st.integers(0, 30), unique=True),
    st.lists(st.integers(0, 30), unique=True),
)
def test_the_fusion_holds_each_item_once_and_never_inverts_agreement(
    first: list[int], second: list[int]
) -> None:
    order = [entry.id for entry in fuse({"a": first, "b": second})]
    assert sorted(order) == sorted({*first, *second})
    for better in first:
        for worse in first[first.index(better) + 1 :]:
            if better in second and (
                worse not in second or second.index(better) < second.index(worse)
            ):
                assert order.index(better) < order.index(worse)
