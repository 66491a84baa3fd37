"""Scheduling policies, without a device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.kernel.policies import Entry, Fifo, Priority, RoundRobin, make_policy
from llmos.syscalls.errors import ConfigError


def entry(key: int, *, arrived: float = 0.0, nice: int = 0, turn: int = 0) -> Entry:
    return Entry(key=key, pid=key, nice=nice, arrived_s=arrived, queued_s=arrived, turn_tokens=turn)


entries = st.lists(
    st.builds(
        entry,
        st.integers(0, 10**6),
        arrived=st.floats(0, 1000),
        nice=st.integers(-20, 19),
        turn=st.integers(0, 100),
    ),
    unique_by=lambda one: one.key,
    max_size=20,
)


@pytest.mark.parametrize("name", ["fifo", "round_robin", "priority"])
@given(listed=entries)
def test_every_policy_orders_all_entries_and_loses_none(name: str, listed: list[Entry]) -> None:
    ordered = make_policy(name).order(listed)
    assert sorted(one.key for one in ordered) == sorted(one.key for one in listed)


@pytest.mark.parametrize("name", ["fifo", "round_robin", "priority"])
@given(waiting=entries, running=entries)
def test_a_victim_is_one_of_the_running(
    name: str, waiting: list[Entry], running: list[Entry]
) -> None:
    victim = make_policy(name).victim(waiting, running)
    assert victim is None or any(victim is one for one in running)
    if not waiting:
        assert victim is None


def test_fifo_serves_by_arrival_and_never_preempts() -> None:
    first, second = entry(2, arrived=1.0), entry(1, arrived=2.0)
    assert Fifo().order([second, first]) == [first, second]
    assert Fifo().victim([entry(9, nice=-20)], [first]) is None


def test_round_robin_takes_the_sequence_of_who_had_its_quantum() -> None:
    policy = RoundRobin(quantum_tokens=16)
    fresh, spent = entry(1, turn=3), entry(2, turn=16)
    assert policy.victim([entry(3)], [fresh, spent]) is spent
    assert policy.victim([entry(3)], [fresh]) is None


def test_priority_prefers_low_nice_and_preempts_for_it() -> None:
    policy = Priority(ageing_s=2.0)
    background, urgent = entry(1, nice=10), entry(2, arrived=5.0, nice=-5)
    assert policy.order([background, urgent]) == [urgent, background]
    assert policy.victim([urgent], [background]) is background
    assert policy.victim([entry(3, arrived=6.0)], [entry(4, arrived=1.0)]) is None


@given(st.integers(-20, 19), st.integers(-20, 19), st.floats(0, 100))
def test_nothing_starves_under_priority(nice: int, rival: int, arrived: float) -> None:
    """A newcomer is ahead of an old entry only if it came soon enough after it."""
    policy = Priority(ageing_s=2.0)
    old, late = entry(1, arrived=arrived, nice=nice), entry(2, arrived=arrived + 79, nice=rival)
    assert policy.order([late, old])[0] is old


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="fifo, round_robin, priority"):
        make_policy("lottery")
