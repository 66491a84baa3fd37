"""When programs are expected back, on a clock that the test moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmos.memory.returns import Returns

if TYPE_CHECKING:
    from tests.memory.conftest import Clock


def away(returns: Returns, clock: Clock, program: int, *gaps_s: float) -> None:
    """Let a program be away for some times, one after the other."""
    for gap_s in gaps_s:
        returns.went(program)
        clock.now += gap_s
        returns.came_back(program)


def test_a_program_is_expected_after_its_usual_gap(clock: Clock) -> None:
    returns = Returns(clock)
    away(returns, clock, 1, *[10.0] * 20)
    since_s = clock.now
    clock.now += 4
    assert returns.remaining_s(1, since_s=since_s) == pytest.approx(6, abs=0.1)


def test_of_two_programs_the_one_with_the_shorter_rest_is_expected_first(clock: Clock) -> None:
    returns = Returns(clock)
    away(returns, clock, 1, 10, 10)
    away(returns, clock, 2, 2, 2)
    now = clock.now
    assert returns.remaining_s(2, since_s=now) < returns.remaining_s(1, since_s=now)
    assert returns.remaining_s(1, since_s=now - 9.9) < returns.remaining_s(2, since_s=now)


def test_who_is_long_overdue_is_expected_later_and_later(clock: Clock) -> None:
    returns = Returns(clock)
    away(returns, clock, 1, 1, 1, 1)
    since_s = clock.now
    clock.now += 100
    assert returns.remaining_s(1, since_s=since_s) == 100


def test_who_was_never_seen_to_return_is_ordered_by_last_use(clock: Clock) -> None:
    returns = Returns(clock)
    clock.now = 50
    remaining = [returns.remaining_s(program, since_s=program * 10.0) for program in (1, 2, 3)]
    assert remaining == sorted(remaining, reverse=True)


def test_a_newcomer_is_expected_after_what_is_usual_for_others(clock: Clock) -> None:
    returns = Returns(clock)
    for program in range(1, 30):
        away(returns, clock, program, 30.0)
    assert returns.remaining_s(99, since_s=clock.now) == pytest.approx(30)


def test_who_was_not_away_teaches_nothing(clock: Clock) -> None:
    returns = Returns(clock)
    away(returns, clock, 1, 10, 10)
    expected_s = returns.remaining_s(1, since_s=clock.now)
    clock.now += 500
    returns.came_back(1)
    assert returns.remaining_s(1, since_s=clock.now) == expected_s
