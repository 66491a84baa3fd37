"""The cost model of a device's steps."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.kernel.pace import Pace

TABLE = {1: 0.007, 4: 0.023, 16: 0.068, 64: 0.27, 512: 2.1}


def test_known_passes_are_told_as_they_are_and_lie_on_a_line_between() -> None:
    pace = Pace(TABLE)
    assert pace.pass_s(4) == pytest.approx(0.023)
    assert pace.pass_s(10) == pytest.approx((0.023 + 0.068) / 2, rel=0.05)
    assert pace.pass_s(0) == 0.0


def test_a_step_is_a_pass_for_decodes_and_one_for_the_prompt() -> None:
    pace = Pace(TABLE)
    assert pace.step_s(rows=4, prompt_tokens=64) == pytest.approx(0.023 + 0.27)


def test_a_prompt_is_computed_in_whole_batches_and_a_rest() -> None:
    pace = Pace(TABLE)
    assert pace.prompt_s(1024 + 64) == pytest.approx(2 * 2.1 + 0.27)


def test_the_rows_that_fit_a_time_take_no_longer_and_one_more_would() -> None:
    pace = Pace(TABLE)
    rows = pace.rows_within(0.1, most=512)
    assert pace.pass_s(rows) <= 0.1 < pace.pass_s(rows + 1)
    assert pace.rows_within(0.0001, most=512) == 0
    assert pace.rows_within(100.0, most=512) == 512


def test_the_curve_of_a_device_is_learned_from_noisy_steps() -> None:
    truth, pace, draw = Pace(TABLE), Pace(), random.Random(3)
    for _ in range(400):
        rows, prompt = draw.choice([0, 1, 4, 16]), draw.choice([0, 0, 64, 512])
        if rows or prompt:
            seconds = truth.step_s(rows=rows, prompt_tokens=prompt) * draw.uniform(0.9, 1.1)
            pace.observe(rows=rows, prompt_tokens=prompt, seconds=seconds)
    for rows in TABLE:
        assert pace.pass_s(rows) == pytest.approx(truth.pass_s(rows), rel=0.25)


def test_one_stalled_step_hardly_moves_a_known_size() -> None:
    pace = Pace()
    for _ in range(20):
        pace.observe(rows=1, prompt_tokens=0, seconds=0.01)
    pace.observe(rows=1, prompt_tokens=0, seconds=10.0)
    assert pace.pass_s(1) < 0.02


def test_a_first_step_that_stalled_is_soon_forgotten() -> None:
    pace = Pace()
    pace.observe(rows=8, prompt_tokens=0, seconds=10.0)
    for _ in range(6):
        pace.observe(rows=8, prompt_tokens=0, seconds=0.04)
    assert pace.pass_s(8) < 0.1


def test_a_clock_that_stands_still_is_survived() -> None:
    pace = Pace()
    for _ in range(50):
        pace.observe(rows=1, prompt_tokens=0, seconds=0.0)
        pace.observe(rows=4, prompt_tokens=30, seconds=0.0)
    assert 0.0 < pace.pass_s(1) <= pace.pass_s(4) < 1e-3


@given(tokens=st.integers(0, 3000), batch_tokens=st.sampled_from([1, 32, 512]))
def test_what_is_computed_within_a_time_takes_that_time(tokens: int, batch_tokens: int) -> None:
    pace = Pace({1: 0.01, 64: 0.3, 512: 2.1})
    seconds = pace.prompt_s(tokens, batch_tokens=batch_tokens)
    within = pace.prompt_within(seconds * (1 + 1e-9) + 1e-9, batch_tokens=batch_tokens)
    assert within == tokens


def test_the_copy_rate_is_learned() -> None:
    pace = Pace()
    for _ in range(60):
        pace.observe_copy(tokens=2000, seconds=0.006)
    assert pace.copy_s(1000) == pytest.approx(0.003, rel=0.05)


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 600), st.floats(1e-4, 5.0)), max_size=40)
)
def test_more_rows_never_take_less_time_whatever_was_observed(
    steps: list[tuple[int, int, float]],
) -> None:
    pace = Pace()
    for rows, prompt, seconds in steps:
        if rows or prompt:
            pace.observe(rows=rows, prompt_tokens=prompt, seconds=seconds)
    times = [pace.pass_s(rows) for rows in range(600)]
    assert all(one <= other * (1 + 1e-9) for one, other in itertools.pairwise(times))
    assert all(seconds > 0 for seconds in times[1:])


def test_small_passes_that_were_never_seen_are_believed_to_be_cheap() -> None:
    pace = Pace()
    for _ in range(20):
        pace.observe(rows=16, prompt_tokens=0, seconds=0.064)
    assert pace.pass_s(1) <= 0.0064 * 1.01
    pace.observe(rows=1, prompt_tokens=0, seconds=0.009)
    assert pace.pass_s(1) == pytest.approx(0.009, rel=0.01)
    assert pace.pass_s(16) == pytest.approx(0.064, rel=0.05)
