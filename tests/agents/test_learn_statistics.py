"""Intervals of success rates and of gains."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.agents.learn_statistics import gain, success_rate

outcomes = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60)


@given(outcomes)
def test_a_rate_lies_within_its_interval(found: list[float]) -> None:
    rate = success_rate(found)
    assert 0.0 <= rate.low <= rate.value <= rate.high <= 1.0


def test_wilsons_interval_is_the_published_one() -> None:
    rate = success_rate([1.0] * 5 + [0.0] * 5)
    assert rate.low == pytest.approx(0.2366, abs=1e-4)
    assert rate.high == pytest.approx(0.7634, abs=1e-4)


def test_a_rate_of_nothing_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        success_rate([])


@given(outcomes)
def test_equal_outcomes_have_no_gain(found: list[float]) -> None:
    assert gain(found, found) == (0.0, 0.0, 0.0)


def test_a_gain_on_most_tasks_is_beyond_doubt() -> None:
    found = gain([0.0] * 40, [1.0] * 30 + [0.0] * 10)
    assert found.value == 0.75
    assert 0.5 < found.low < 0.75 < found.high


def test_a_gain_on_one_task_of_many_is_not() -> None:
    assert gain([0.0] * 40, [1.0] + [0.0] * 39).low == 0.0


def test_outcomes_of_other_tasks_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same tasks"):
        gain([1.0], [1.0, 0.0])
