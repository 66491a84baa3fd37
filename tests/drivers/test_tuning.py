"""What a speed is worth, and that measuring one leaves a model as it was."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from llmos.drivers.contract import DeviceError, ModelSpec
from llmos.drivers.scripted import Scripted
from llmos.drivers.tuning import AGENTS, Mix, Speed, cost_ms, measure_speed

TEXT = [1 + number % 200 for number in range(599)]


def scripted(**sizes: int) -> Scripted:
    return Scripted(ModelSpec("scripted", Path("scripted"), **{"context_tokens": 640, **sizes}))


def test_the_cost_of_a_token_is_its_share_of_prompt_and_of_decoding() -> None:
    mix = Mix(prompt_tokens=4, decode={1: 0.5, 16: 0.5})
    assert cost_ms(Speed(400, {1: 50, 16: 200}), mix) == pytest.approx(10 + 10 + 2.5)


def test_shares_need_not_add_up_to_one() -> None:
    speed = Speed(1000, {1: 100, 16: 100})
    assert cost_ms(speed, Mix(0, {1: 1, 16: 3})) == pytest.approx(10)


def test_a_batch_that_was_not_measured_runs_like_the_next_smaller_one() -> None:
    one, both = Speed(100, {1: 50, 4: 80}), Speed(100, {1: 50, 4: 80, 16: 80})
    assert cost_ms(one) == cost_ms(both)
    with pytest.raises(ValueError, match="1 sequences or fewer"):
        cost_ms(Speed(100, {4: 80}))


def test_agents_prefer_fast_prompts_to_a_fast_single_stream() -> None:
    fast_prompts = Speed(778, {1: 93, 4: 220, 16: 447})
    fast_single = Speed(465, {1: 152, 4: 240, 16: 366})
    assert cost_ms(fast_prompts, AGENTS) < cost_ms(fast_single, AGENTS)


def test_rates_come_from_the_clock() -> None:
    ticks = itertools.count()
    speed = measure_speed(scripted(), TEXT, clock=lambda: next(ticks) / 4)
    # Each step takes a quarter of a second; a slow model gets a shorter prompt.
    assert speed.prefill == 384 / 0.25
    assert dict(speed.decode) == {1: 4, 4: 16, 16: 64}


def test_fewer_sequences_than_the_largest_batch_are_measured_as_they_are() -> None:
    ticks = itertools.count()
    speed = measure_speed(scripted(sequences=5), TEXT, clock=lambda: next(ticks) / 1000)
    assert set(speed.decode) == {1, 4}


def test_the_model_is_empty_afterwards_and_can_be_measured_again() -> None:
    model = scripted()
    for _ in range(2):
        measure_speed(model, TEXT)
        assert [model.length(sequence) for sequence in range(16)] == [0] * 16


@pytest.mark.parametrize(("tokens", "window"), [(10, 640), (599, 100)])
def test_too_little_to_measure_with_is_an_error(tokens: int, window: int) -> None:
    with pytest.raises(DeviceError, match="too few"):
        measure_speed(scripted(context_tokens=window), TEXT[:tokens])
