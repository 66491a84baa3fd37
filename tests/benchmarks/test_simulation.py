"""The simulation: what it adds up to by hand, and the optimum for eviction."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.kernel.policies import PolicyName, make_policy

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.simulation import (
    Costs,
    Outcome,
    Program,
    Simulation,
    Turn,
    belady_misses,
)

# A row takes 10 ms, whoever it belongs to and however many there are.
COSTS = Costs({size: 0.01 * size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)})


def run(programs: list[Program], *, policy: PolicyName = "fifo", **options: int) -> Outcome:
    sequences = options.pop("sequences", 4)
    return Simulation(
        programs, costs=COSTS, policy=make_policy(policy), sequences=sequences, **options
    ).run()


def test_one_program_takes_what_its_steps_take() -> None:
    """40 prompt tokens, of which the last gives the first new one, and 9 more steps."""
    outcome = run([Program(5.0, [Turn(40, 10)])])
    assert outcome.completion_s == [pytest.approx(0.40 + 0.09)]
    assert (outcome.prompt_tokens, outcome.new_tokens) == (40, 10)


def test_a_return_computes_only_what_is_new() -> None:
    outcome = run([Program(0.0, [Turn(40, 10, wait_s=3.0), Turn(20, 10)])])
    assert outcome.completion_s == [pytest.approx(0.49 + 3.0 + 0.21 + 0.09)]
    assert (outcome.prompt_tokens, outcome.again_tokens) == (61, 0)


def test_what_was_given_up_is_computed_again_and_what_was_saved_is_not() -> None:
    programs = [
        Program(0.0, [Turn(40, 10, wait_s=30.0), Turn(20, 10)]),
        Program(10.0, [Turn(40, 10)]),
        Program(11.0, [Turn(40, 10, wait_s=1.0), Turn(20, 10)]),
    ]
    assert run(programs, sequences=1).again_tokens == 50
    saved = run(programs, sequences=1, host_tokens=1000)
    assert (saved.again_tokens, saved.restored_tokens) == (0, 49)


def test_many_steps_that_are_alike_are_one_event() -> None:
    outcome = run([Program(0.0, [Turn(16, 500)])])
    assert outcome.ended_s == pytest.approx(0.16 + 0.01 * 499)
    assert outcome.events < 5


programs_drawn = st.lists(
    st.builds(
        Program,
        st.floats(0, 20),
        st.lists(
            st.builds(Turn, st.integers(1, 80), st.integers(1, 30), st.floats(0, 5)),
            min_size=1,
            max_size=4,
        ),
    ),
    min_size=1,
    max_size=8,
)


@given(programs_drawn, st.sampled_from(["fifo", "round_robin", "priority", "fair", "las"]))
def test_every_program_comes_to_its_end_and_every_token_is_counted_once(
    programs: list[Program], policy: PolicyName
) -> None:
    outcome = run(programs, policy=policy, sequences=2, host_tokens=10_000)
    turns = [turn for program in programs for turn in program.turns]
    assert all(seconds > 0 for seconds in outcome.completion_s)
    assert outcome.new_tokens == sum(turn.new_tokens for turn in turns)
    assert outcome.prompt_tokens >= sum(turn.prompt_tokens for turn in turns)
    assert len(outcome.accesses) == len(turns)
    assert outcome.again_tokens == 0


# --- the optimum ---


def test_the_optimum_keeps_what_comes_back_first() -> None:
    """a and b fit, c does not: of a and b, the one that comes back last gives way."""
    accesses = [(1, 50), (2, 50), (3, 50), (1, 50), (2, 50)]
    assert belady_misses(accesses, 150) == 0
    assert belady_misses(accesses, 100) == 50
    assert belady_misses(accesses, 120) == 30
    assert belady_misses(accesses, 50) == 100


def test_the_optimum_counts_nothing_that_is_new() -> None:
    assert belady_misses([(1, 10), (1, 30), (1, 90)], 90) == 0
    with pytest.raises(ValueError, match="larger"):
        belady_misses([(1, 91)], 90)


accesses_drawn = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), max_size=9)


@given(accesses_drawn, st.integers(6, 14))
def test_no_cache_of_whole_contexts_does_better_than_the_optimum(
    accesses: list[tuple[int, int]], capacity: int
) -> None:
    least = belady_misses(accesses, capacity)
    assert 0 <= least <= _least_recently_used(accesses, capacity)
    assert belady_misses(accesses, 1000) == 0


@given(accesses_drawn, st.integers(6, 14))
def test_the_optimum_is_what_trying_everything_finds(
    accesses: list[tuple[int, int]], capacity: int
) -> None:
    assert belady_misses(accesses, capacity) == _tried(accesses, capacity)


def _least_recently_used(accesses: list[tuple[int, int]], capacity: int) -> int:
    kept: dict[int, int] = {}
    seen: dict[int, int] = {}
    missed = 0
    for program, tokens in accesses:
        missed += seen.get(program, 0) - kept.pop(program, 0)
        while kept and sum(kept.values()) + tokens > capacity:
            del kept[next(iter(kept))]
        kept[program] = seen[program] = tokens
    return missed


def _tried(accesses: list[tuple[int, int]], capacity: int) -> int:
    """The least, by giving up a token at a time of whichever program, in all ways."""
    states = {(): 0}
    seen: dict[int, int] = {}
    for program, tokens in accesses:
        after: dict[tuple[tuple[int, int], ...], int] = {}
        for state, missed in states.items():
            kept = dict(state)
            missed += seen.get(program, 0) - kept.pop(program, 0)
            for rest in _fitting(tuple(sorted(kept.items())), capacity - tokens):
                key = tuple(sorted([*rest, (program, tokens)]))
                after[key] = min(missed, after.get(key, missed))
        seen[program] = tokens
        states = after
    return min(states.values())


def _fitting(kept: tuple[tuple[int, int], ...], capacity: int) -> set[tuple[tuple[int, int], ...]]:
    """Every way to keep as much as fits, which is never worse than keeping less."""
    over = sum(tokens for _, tokens in kept) - capacity
    found = {kept}
    for _ in range(max(0, over)):
        found = {
            tuple((p, t - (p == loser)) for p, t in one)
            for one in found
            for loser, left in one
            if left
        }
    return found
