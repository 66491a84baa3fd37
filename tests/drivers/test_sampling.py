"""The arithmetic of sampling, against plain definitions on small vocabularies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmos.drivers.contract import DeviceError
from llmos.drivers.sampling import Row, Sampler
from llmos.syscalls.options import Sampling

DRAWS = 4000


def row(*logits: float) -> Row:
    return np.array(logits, np.float32)


def softmax(logits: Row, temperature: float) -> NDArray[np.float64]:
    weights = np.exp((logits.astype(np.float64) - float(logits.max())) / temperature)
    return weights / weights.sum()


def kept(logits: Row, sampling: Sampling) -> NDArray[np.float64]:
    """The distribution by definition: sort everything, cut by cut."""
    shares = softmax(logits, sampling.temperature)
    order = np.argsort(-shares, kind="stable")
    order = order[: sampling.top_k or len(order)]
    cumulative = np.cumsum(shares[order] / shares[order].sum())
    order = order[: int(np.searchsorted(cumulative, sampling.top_p * (1 - 1e-9))) + 1]
    order = order[shares[order] >= sampling.min_p * shares.max() * (1 - 1e-6)]
    cut = np.zeros(len(logits))
    cut[order] = shares[order] / shares[order].sum()
    return cut


def frequencies(logits: Row, sampling: Sampling, mask: Any = None) -> NDArray[np.float64]:
    sampler = Sampler(sampling, len(logits))
    counts = np.zeros(len(logits))
    for _ in range(DRAWS):
        counts[sampler.sample(logits, mask).token] += 1
    return counts / DRAWS


def assert_distribution(found: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    """Nothing impossible was drawn, and a chi-square statistic that chance hardly exceeds."""
    assert not found[expected == 0].any()
    possible = expected > 0
    statistic = DRAWS * ((found - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = max(int(possible.sum()) - 1, 1)
    # Five standard deviations over the mean of the chi-square distribution.
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


LOGITS = row(2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -4.0)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.5, seed=2),
        Sampling(temperature=3.0, seed=3),
        Sampling(temperature=1.0, seed=4, top_k=3),
        Sampling(temperature=1.0, seed=5, top_p=0.7),
        Sampling(temperature=1.0, seed=6, min_p=0.2),
        Sampling(temperature=1.5, seed=7, top_k=6, top_p=0.8, min_p=0.1),
    ],
)
def test_draws_follow_the_distribution_that_the_settings_define(sampling: Sampling) -> None:
    assert_distribution(frequencies(LOGITS, sampling), kept(LOGITS, sampling))


def test_draws_over_a_large_vocabulary_follow_the_distribution() -> None:
    # More tokens than one block of the two-level draw; three carry nearly all the mass.
    logits = np.full(5000, -6.0, np.float32)
    logits[[3, 255, 256, 4999]] = (3.0, 2.0, 2.5, 2.8)
    sampling = Sampling(temperature=1.0, seed=8)
    expected = softmax(logits, 1.0)
    found = frequencies(logits, sampling)
    # The thin tail as one class: its expected counts are too small one by one.
    heavy = [3, 255, 256, 4999]
    assert_distribution(
        np.append(found[heavy], 1 - found[heavy].sum()),
        np.append(expected[heavy], 1 - expected[heavy].sum()),
    )


ROWS = st.lists(
    st.floats(-30, 30, width=32).map(lambda x: round(x, 2)), min_size=1, max_size=40
).map(lambda values: np.array(values, np.float32))


@settings(max_examples=200)
@given(
    ROWS,
    st.builds(
        Sampling,
        temperature=st.floats(0.05, 5.0),
        top_k=st.none() | st.integers(1, 50),
        top_p=st.floats(0.05, 1.0),
        min_p=st.sampled_from([0.0, 0.05, 0.5]),
        seed=st.integers(0, 2**64),
    ),
)
def test_only_tokens_that_the_cuts_keep_are_drawn(logits: Row, sampling: Sampling) -> None:
    sampler = Sampler(sampling, len(logits))
    # A little slack at the edges, where single precision decides.
    loose = sampling.model_copy(
        update={"top_p": min(1.0, sampling.top_p + 1e-4), "min_p": sampling.min_p * 0.999}
    )
    allowed = kept(logits, loose) > 0
    for _ in range(5):
        token = sampler.sample(logits).token
        ties = logits == logits[token]
        assert allowed[token] or (allowed & ties).any()


@given(ROWS)
def test_greedy_takes_the_first_of_the_most_likely(logits: Row) -> None:
    best = int(logits.argmax())
    assert Sampler(Sampling(), len(logits)).sample(logits).token == best
    assert Sampler(Sampling(temperature=9, top_k=1), len(logits)).sample(logits).token == best
    assert Sampler(Sampling(temperature=1e-30), len(logits)).sample(logits).token == best or (
        (logits == logits[best]).sum() > 1
    )


@given(ROWS, st.integers(0, 2**32), st.integers(0, 9))
def test_a_seed_gives_the_same_tokens_again_and_after_a_break(
    logits: Row, seed: int, broken_after: int
) -> None:
    sampling = Sampling(temperature=1.3, seed=seed, presence_penalty=0.7, top_p=0.9)
    whole = Sampler(sampling, len(logits), [0])
    tokens = [whole.sample(logits).token for _ in range(10)]
    resumed = Sampler(sampling, len(logits), [0], tokens[:broken_after])
    rest = [resumed.sample(logits).token for _ in range(10 - broken_after)]
    assert tokens[:broken_after] + rest == tokens


def test_without_a_seed_two_generations_differ() -> None:
    logits = np.zeros(1000, np.float32)
    one, other = (Sampler(Sampling(temperature=1.0), 1000) for _ in range(2))
    draws = [[one.sample(logits).token for _ in range(8)] for one in (one, other)]
    assert draws[0] != draws[1]


def test_the_mask_decides_before_every_cut() -> None:
    mask = np.array([False, False, False, True, False, True, False, True])
    sampling = Sampling(temperature=1.0, seed=9, top_k=2)
    masked = np.where(mask, LOGITS, np.float32(-np.inf))
    assert_distribution(frequencies(LOGITS, sampling, mask), kept(masked, sampling))
    assert Sampler(Sampling(), 8).sample(LOGITS, mask).token == 3


def test_a_mask_that_allows_nothing_is_an_error() -> None:
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        with pytest.raises(DeviceError, match="constraint allows no"):
            Sampler(sampling, 8).sample(LOGITS, np.zeros(8, np.bool_))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(wrong: float) -> None:
    with pytest.raises(DeviceError, match="not finite"):
        Sampler(Sampling(), 3).sample(row(0.0, wrong, 1.0))


def test_the_row_is_not_written_to() -> None:
    logits = LOGITS.copy()
    logits.flags.writeable = False
    sampling = Sampling(
        temperature=1.0, repetition_penalty=1.5, logit_bias={1: 2.0}, logprobs=2, seed=0
    )
    sampler = Sampler(sampling, 8, prompt=[0, 1])
    sampler.sample(logits, np.ones(8, np.bool_))
    assert (logits == LOGITS).all()


def test_a_bias_moves_a_token_by_its_amount() -> None:
    biased = LOGITS.copy()
    biased[7] += 6.0
    biased[0] -= 100.0
    sampling = Sampling(temperature=1.0, seed=3, logit_bias={7: 6.0, 0: -100.0})
    assert_distribution(frequencies(LOGITS, sampling), softmax(biased, 1.0).round(9))


def test_a_bias_outside_the_vocabulary_is_refused() -> None:
    for token in (-1, 8):
        with pytest.raises(DeviceError, match=f"token {token}; the vocabulary has 8"):
            Sampler(Sampling(logit_bias={token: 1.0}), 8)


def test_repetition_makes_seen_tokens_less_likely_on_both_sides_of_zero() -> None:
    sampling = Sampling(repetition_penalty=2.0)
    assert Sampler(sampling, 3, [0]).sample(row(2.0, 1.1, 0.0)).token == 1
    assert Sampler(sampling, 3, [0]).sample(row(-1.0, -1.9, -9.0)).token == 1
    assert Sampler(sampling, 3, []).sample(row(2.0, 1.1, 0.0)).token == 0


def test_frequency_counts_each_use_and_presence_counts_once() -> None:
    logits = row(2.0, 1.0, -9.0)
    assert Sampler(Sampling(frequency_penalty=0.4), 3, [0, 0]).sample(logits).token == 0
    assert Sampler(Sampling(frequency_penalty=0.4), 3, [0, 0, 0]).sample(logits).token == 1
    assert Sampler(Sampling(presence_penalty=0.4), 3, [0, 0, 0]).sample(logits).token == 0
    assert Sampler(Sampling(presence_penalty=1.1), 3, [0]).sample(logits).token == 1


def test_penalties_look_back_over_their_window_only() -> None:
    logits = row(2.0, 1.0, 0.0)
    sampling = Sampling(presence_penalty=2.0, penalty_window_tokens=2)
    sampler = Sampler(sampling, 3, prompt=[0, 2])
    assert sampler.sample(logits).token == 1  # 0 and 2 are in the window
    assert sampler.sample(logits).token == 0  # 2 and 1 are
    sampler.observe(2)
    assert sampler.sample(logits).token == 1  # 0 and 2 again
    no_window = Sampling(presence_penalty=2.0, penalty_window_tokens=0)
    assert Sampler(no_window, 3, prompt=[0]).sample(logits).token == 0


@given(ROWS, st.integers(0, 5))
def test_what_is_skipped_counts_as_sampled(logits: Row, count: int) -> None:
    sampling = Sampling(temperature=1.5, seed=3, presence_penalty=0.5)
    sampled = Sampler(sampling, len(logits), [])
    skipped = Sampler(sampling, len(logits), [])
    skipped.skip([sampled.sample(logits).token for _ in range(count)])
    assert skipped.sample(logits) == sampled.sample(logits)


@given(ROWS, st.integers(0, 20))
def test_logprobs_are_of_the_row_as_it_came(logits: Row, wanted: int) -> None:
    sampling = Sampling(logprobs=wanted, logit_bias={0: 50.0}, temperature=2.0, seed=1)
    choice = Sampler(sampling, len(logits), [0]).sample(logits)
    expected = np.log(softmax(logits, 1.0).clip(1e-300))
    assert choice.logprob == pytest.approx(expected[choice.token], abs=1e-4)
    assert len(choice.top) <= wanted
    values = [value for _, value in choice.top]
    assert values == sorted(values, reverse=True)
    for token, value in choice.top:
        assert value == pytest.approx(expected[token], abs=1e-4)
    if wanted and len(logits) > 0:
        assert choice.top[0][0] == int(logits.argmax())
