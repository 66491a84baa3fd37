"""The fusion of hybrid search: what decides, what agreement means, and odd rankings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.memory.fusion import LEAST_DENSE, MOST_DENSE, dense_weight, fuse

Ranking = dict[int, float]


def ranking(scores: list[tuple[int, float]]) -> Ranking:
    """A ranking as a search gives it: best first, each item once."""
    return dict(sorted(dict(scores).items(), key=lambda entry: -entry[1]))


RANKINGS = st.builds(
    ranking, st.lists(st.tuples(st.integers(0, 30), st.floats(0.5, 20, width=16)), max_size=20)
)


def order(cosine: Ranking, bm25: Ranking) -> list[int]:
    return [one.id for one in fuse(cosine, bm25)]


def test_a_match_of_words_that_stands_alone_decides() -> None:
    cosine = {1: 0.61, 2: 0.60, 3: 0.35, 4: 0.30}
    assert order(cosine, {4: 9.0, 1: 1.5})[0] == 4
    assert order(cosine, {3: 9.0})[0] == 3


def test_where_many_match_about_as_well_meaning_decides() -> None:
    cosine = {1: 0.61, 2: 0.50, 3: 0.35, 4: 0.30}
    assert order(cosine, {4: 2.0, 3: 1.98, 1: 1.7, 2: 1.6}) == [1, 2, 3, 4]


def test_a_note_that_both_rankings_like_beats_the_first_of_one() -> None:
    fused = fuse({1: 0.6, 2: 0.58, 3: 0.2}, {4: 3.0, 2: 2.9, 5: 2.8})
    assert fused[0].id == 2
    assert fused[0].ranks == {"dense": 2, "lexical": 2}
    assert 0 < fused[0].score < 1


def test_the_weight_of_meaning_goes_from_least_to_most() -> None:
    assert dense_weight([5.0]) == LEAST_DENSE
    assert dense_weight([5.0, 5.0]) == pytest.approx(MOST_DENSE)
    assert LEAST_DENSE < dense_weight([5.0, 2.5, 1.0]) < MOST_DENSE
    assert dense_weight([0.0, 0.0]) == pytest.approx(MOST_DENSE)


def test_an_empty_ranking_leaves_the_other_as_it_is() -> None:
    assert order({7: 0.9, 5: 0.5, 6: -0.2}, {}) == [7, 5, 6]
    assert order({}, {7: 3.0, 5: 0.5, 6: 0.1}) == [7, 5, 6]
    assert order({}, {}) == []
    assert fuse({7: 0.9}, {})[0].score == 1.0


@given(RANKINGS, RANKINGS)
def test_the_fusion_holds_each_item_once_and_never_inverts_agreement(
    cosine: Ranking, bm25: Ranking
) -> None:
    found = order(cosine, bm25)
    assert sorted(found) == sorted({*cosine, *bm25})
    for better in found:
        for worse in found[: found.index(better)]:
            # What stands before it is not behind in both.
            is_behind = cosine.get(worse, -1) < cosine.get(better, -1) and bm25.get(
                worse, -1
            ) < bm25.get(better, -1)
            assert not is_behind


@given(RANKINGS, RANKINGS)
def test_scores_fall_and_stay_between_0_and_1(cosine: Ranking, bm25: Ranking) -> None:
    scores = [one.score for one in fuse(cosine, bm25)]
    assert scores == sorted(scores, reverse=True)
    assert all(0.0 <= score <= 1.0 + 1e-9 for score in scores)
