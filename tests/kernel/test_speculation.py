"""Guesses from what was read and said before."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.kernel.speculation import MOST_GUESSES, Drafter

TEXT = [*b"The quick brown fox jumps over the lazy dog while seven old maps fade."]


def rows_cost(share: float) -> Callable[[int], float]:
    """A device on which each further row costs a share of the first."""
    return lambda guesses: 1.0 + share * guesses


FLAT, STEEP = rows_cost(0.01), rows_cost(1.0)


def propose(
    drafter: Drafter, most: int = 8, cost: Callable[[int], float] = FLAT, others: int = 0
) -> list[int]:
    return [*drafter.propose(most=most, step_s=cost, others=others)]


def test_what_followed_the_last_tokens_before_is_guessed() -> None:
    drafter = Drafter([*TEXT, *b"\nAgain: The q"])
    assert propose(drafter, 6) == [*b"uick b"]


def test_the_latest_place_is_taken_and_a_longer_agreement_first() -> None:
    assert propose(Drafter([*b"xab1. yab2. zab"]), 2) == [*b"2."]
    assert propose(Drafter([*b"xab1. yab2. xab"]), 2) == [*b"1."]


def test_without_an_earlier_place_nothing_is_guessed() -> None:
    assert propose(Drafter([])) == []
    assert propose(Drafter([1])) == []
    assert propose(Drafter([1, 2])) == []
    assert propose(Drafter([*b"abcdefg"])) == []


def test_a_text_that_repeats_itself_is_guessed_beyond_its_end() -> None:
    drafter = Drafter([*b"say: ", *b"la la "])
    drafter.observe(b"la la ")
    assert propose(drafter, 9) == [*b"la la la "]


def test_a_copy_is_followed_from_where_it_began() -> None:
    """Not from the latest place of the last three tokens."""
    drafter = Drafter([*b"one cat sat. two cats. Copy: "])
    drafter.observe(b"one cat")
    assert propose(drafter, 5) == [*b" sat."]


def test_nothing_is_guessed_beyond_an_end_token() -> None:
    drafter = Drafter([*b"abc", 257, *b"defabc"], ends={257})
    assert propose(drafter) == []
    drafter = Drafter([*b"abcd", 257, *b"defabc"], ends={257})
    assert propose(drafter) == [*b"d"]


def test_no_more_is_guessed_than_is_asked_for() -> None:
    drafter = Drafter(TEXT * 2)
    for most in (0, 1, 5):
        assert len(propose(drafter, most)) == most
    assert len(propose(drafter, 100)) == MOST_GUESSES


# --- what pays ------------------------------------------------------------------------------------


def test_where_rows_are_dear_a_sure_copy_is_guessed_only_to_learn_the_cost() -> None:
    drafter = Drafter(TEXT)
    asked: list[int] = []
    for token in TEXT:
        asked.append(len(propose(drafter, cost=STEEP)))
        drafter.observe([token])
    assert sum(map(bool, asked)) <= len(asked) // 16 + 1
    assert max(asked) <= 2


def test_wrong_guesses_end_guessing_and_right_ones_bring_it_back() -> None:
    chance = random.Random(1)
    drafter = Drafter([])
    # Pairs recur all the time and are followed by anything.
    drafter.observe([chance.randrange(6) for _ in range(600)])
    assert sum(len(propose(drafter, cost=rows_cost(0.3))) for _ in range(8)) == 0
    drafter.observe(TEXT)
    drafter.observe(TEXT)
    drafter.observe(TEXT[:20])
    assert len(propose(drafter, cost=rows_cost(0.3))) >= 4


def test_a_longer_draft_is_taken_the_flatter_the_device() -> None:
    def length(slope: float) -> int:
        drafter = Drafter(TEXT)
        drafter.observe(TEXT[:12])
        return len(propose(drafter, 15, rows_cost(slope)))

    lengths = [length(slope) for slope in (0.01, 0.2, 0.5, 1.0)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[2] > lengths[3] == 0


def test_a_draft_must_pay_for_the_time_that_it_takes_from_others() -> None:
    drafter = Drafter(TEXT)
    drafter.observe(TEXT[:8])
    assert propose(drafter, cost=rows_cost(0.4))
    assert not propose(drafter, cost=rows_cost(0.4), others=15)


def test_a_clock_that_stands_still_lets_everything_be_guessed() -> None:
    drafter = Drafter(TEXT * 2)
    assert len(propose(drafter, cost=lambda _: 0.0)) == 8


def test_a_step_that_was_slow_by_chance_does_not_end_guessing() -> None:
    """It is asked for again now and then, so that its cost can be learned anew."""
    drafter = Drafter(TEXT)
    drafter.observe(TEXT[:20])
    lengths = [len(propose(drafter, cost=rows_cost(100.0))) for _ in range(32)]
    assert lengths.count(2) == 2
    assert lengths.count(0) == 30


def test_what_was_forced_is_followed_but_teaches_nothing() -> None:
    one, other = Drafter(TEXT), Drafter(TEXT)
    one.observe([7, 8])
    other.observe([7, 8])
    for _ in range(50):
        one.read(b"zq")
    other.read(b"zq")
    for token in TEXT[:4]:
        one.observe([token])
        other.observe([token])
    assert propose(one, cost=rows_cost(0.3)) == propose(other, cost=rows_cost(0.3)) != []


TOKENS = st.lists(st.integers(0, 3), max_size=30)


@given(st.lists(st.tuples(st.booleans(), TOKENS), max_size=6), st.integers(1, 15))
def test_guesses_follow_an_earlier_place_of_the_last_two_tokens(
    parts: Sequence[tuple[bool, list[int]]], most: int
) -> None:
    drafter, text = Drafter(), list[int]()
    for is_read, tokens in parts:
        (drafter.read if is_read else drafter.observe)(tokens)
        text += tokens
    guesses = [*drafter.propose(most=most, step_s=lambda _: 1.0)]
    ends = [at for at in range(2, len(text)) if text[at - 2 : at] == text[-2:]]
    assert ends or not guesses

    def continues(at: int) -> bool:
        whole = [*text, *guesses]
        return whole[at : at + len(guesses)] == guesses

    assert not guesses or any(continues(at) for at in ends)


@pytest.mark.parametrize("step", [1, 3, 7])
def test_reading_in_parts_equals_reading_at_once(step: int) -> None:
    text = TEXT + TEXT[:10]
    parts = Drafter()
    for start in range(0, len(text), step):
        parts.read(text[start : start + step])
    assert propose(parts) == propose(Drafter(text)) != []
