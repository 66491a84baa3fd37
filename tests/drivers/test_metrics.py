"""Scores are those of the reference libraries, and their intervals are honest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.drivers.metrics.answers import common_length, is_exact, rouge_l, score_answers
from llmos.drivers.metrics.bootstrap import difference, interval, mean_of, ratio_of
from llmos.drivers.metrics.calibration import calibration
from llmos.drivers.metrics.entities import entity_measures, score_entities
from llmos.drivers.metrics.labels import confused_pairs, label_measures, score_labels
from llmos.syscalls.errors import SyscallError

LABELS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=40
)
TAGS = ["O", "B-place", "I-place", "B-person", "I-person"]
SENTENCES = st.lists(
    st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=8),
    min_size=1,
    max_size=6,
)


def test_labels_are_scored_as_by_hand() -> None:
    scores = score_labels(["a", "a", "b", "c"], ["a", "b", "b", "b"], labels=["c", "b", "a"])

    assert scores.labels == ("c", "b", "a")
    assert scores.accuracy == scores.micro_f1 == 0.5
    assert [score.rows for score in scores.classes] == [1, 1, 2]
    assert scores.classes[1].precision == pytest.approx(1 / 3)
    assert scores.classes[1].recall == 1.0
    assert scores.macro_f1 == pytest.approx((0 + 0.5 + 2 / 3) / 3)
    assert scores.confusion == ((0, 1, 0), (0, 1, 0), (0, 1, 1))
    assert confused_pairs(scores, most=1) == [("a", "b", 1)]


def test_a_class_that_occurs_nowhere_does_not_lower_macro_f1() -> None:
    scores = score_labels(["a", "b"], ["a", "b"], labels=["a", "b", "never"])

    assert scores.macro_f1 == 1.0
    assert scores.classes[2].rows == 0


@given(LABELS)
@settings(max_examples=30, deadline=None)
def test_the_measures_of_labels_agree_with_scikit_learn(rows: list[tuple[str, str]]) -> None:
    truth, predicted = [row[0] for row in rows], [row[1] for row in rows]
    scores = score_labels(truth, predicted)
    measures = label_measures(truth, predicted)

    for name, value in scores.metrics().items():
        assert measures[name].value == pytest.approx(value), name


def test_rows_without_predictions_are_refused() -> None:
    with pytest.raises(SyscallError, match="1 predictions for 2 rows"):
        score_labels(["a", "b"], ["a"])
    with pytest.raises(SyscallError, match="no rows"):
        score_labels([], [])


def test_an_entity_counts_only_when_it_is_whole() -> None:
    truth = [["B-place", "I-place", "O"], ["B-person", "O", "B-place"]]
    scores = score_entities(truth, [["B-place", "O", "O"], ["B-person", "O", "B-place"]])

    assert [score.entity for score in scores.entities] == ["person", "place"]
    assert scores.precision == scores.recall == scores.f1 == pytest.approx(2 / 3)
    assert scores.entities[1].real == 2
    assert scores.entities[1].right == 1
    assert scores.token_accuracy == pytest.approx(5 / 6)


def test_an_entity_that_does_not_begin_with_b_is_none() -> None:
    scores = score_entities([["B-place", "O"]], [["I-place", "O"]])

    assert (scores.f1, scores.entities[0].found) == (0.0, 0)


def test_sentences_without_any_entity_score_nothing_and_warn_of_nothing() -> None:
    scores = score_entities([["O", "O"]], [["O", "O"]])

    assert (scores.f1, scores.macro_f1, scores.token_accuracy) == (0.0, 0.0, 1.0)
    assert entity_measures([["O"]], [["O"]])["f1"].value == 0.0


@given(SENTENCES)
@settings(max_examples=30, deadline=None)
def test_entities_agree_with_seqeval_in_strict_mode(
    sentences: list[list[tuple[str, str]]],
) -> None:
    from seqeval.metrics import f1_score
    from seqeval.scheme import IOB2

    truth = [[word[0] for word in sentence] for sentence in sentences]
    predicted = [[word[1] for word in sentence] for sentence in sentences]
    scores = score_entities(truth, predicted)
    if scores.entities:
        expected = f1_score(truth, predicted, mode="strict", scheme=IOB2, zero_division=0)
        assert scores.f1 == pytest.approx(expected)
    measures = entity_measures(truth, predicted)
    assert measures["f1"].value == pytest.approx(scores.f1)
    assert measures["macro_f1"].value == pytest.approx(scores.macro_f1)


def test_what_is_no_tag_is_named() -> None:
    with pytest.raises(SyscallError, match="sentence 2: 'place' is no BIO tag"):
        score_entities([["O"], ["place"]], [["O"], ["O"]])
    with pytest.raises(SyscallError, match="sentence 1 has 2 words and 1 predicted tags"):
        score_entities([["O", "O"]], [["O"]])


def test_confidence_that_matches_accuracy_has_no_calibration_error() -> None:
    found = calibration([0.75] * 4 + [0.25] * 4, [True] * 3 + [False] + [True] + [False] * 3)

    assert found.error == pytest.approx(0.0)
    assert [bin.rows for bin in found.bins] == [0, 0, 4, 0, 0, 0, 0, 4, 0, 0]


def test_a_model_that_is_sure_and_wrong_is_as_far_off_as_can_be() -> None:
    found = calibration([1.0, 1.0, 0.0], [False, False, False])

    assert found.largest == 1.0
    assert found.error == pytest.approx(2 / 3)
    assert found.bins[0].rows == 1
    with pytest.raises(SyscallError, match="not between 0 and 1"):
        calibration([1.5], [True])


def test_an_answer_is_exact_whatever_its_case_and_punctuation() -> None:
    assert is_exact("Lost card.", "lost  card")
    assert not is_exact("lost card", "card lost")
    assert score_answers(["Lost card."], ["lost card"]).exact_match == 1.0


def test_rouge_rewards_words_in_order() -> None:
    assert rouge_l("the cat sat down", "the cat lay down") == pytest.approx(0.75)
    assert rouge_l("a b", "b a") == pytest.approx(0.5)
    assert rouge_l("a", "") == 0.0
    assert rouge_l("", "...") == 1.0


@given(st.lists(st.sampled_from("ab"), max_size=8), st.lists(st.sampled_from("ab"), max_size=8))
@settings(max_examples=50, deadline=None)
def test_the_longest_common_subsequence_is_symmetric(first: list[str], second: list[str]) -> None:
    found = common_length(first, second)
    assert found == common_length(second, first)
    assert found <= min(len(first), len(second))


def test_an_interval_holds_the_figure_and_narrows_with_rows() -> None:
    few = interval(mean_of([True, False] * 20))
    many = interval(mean_of([True, False] * 2000))

    assert few.low < few.value == 0.5 < few.high
    assert many.high - many.low < (few.high - few.low) / 5
    # The normal interval of a share of 4,000 rows.
    assert many.high == pytest.approx(0.5 + 1.96 * (0.25 / 4000) ** 0.5, abs=0.003)


def test_the_same_seed_gives_the_same_interval() -> None:
    measure = ratio_of([1.0, 2.0, 5.0], [1.0, 1.0, 2.0])

    assert interval(measure, seed=3) == interval(measure, seed=3)
    assert measure.value == 2.0


def test_an_interval_covers_the_true_value_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    covered = [
        low <= 0.7 <= high
        for _, low, high in (
            interval(mean_of((draw.random(200) < 0.7).tolist()), resamples=400, seed=n)
            for n in range(200)
        )
    ]

    assert 0.88 <= sum(covered) / len(covered) <= 0.99


def test_a_paired_comparison_sees_what_two_intervals_do_not() -> None:
    draw = np.random.default_rng(2)
    first = draw.random(500) < 0.5
    second = first | (draw.random(500) < 0.04)  # right wherever the first is, and a little more
    found = difference(mean_of(first.tolist()), mean_of(second.tolist()))

    assert found.is_clear
    assert found.share_above > 0.99
    assert interval(mean_of(first.tolist())).high > interval(mean_of(second.tolist())).low


def test_equal_models_do_not_differ_and_different_rows_are_refused() -> None:
    same = difference(mean_of([1.0, 0.0]), mean_of([1.0, 0.0]))

    assert same == (0.0, 0.0, 0.0, 0.5)
    assert not same.is_clear
    with pytest.raises(SyscallError, match="the same rows"):
        difference(mean_of([1.0]), mean_of([1.0, 0.0]))
