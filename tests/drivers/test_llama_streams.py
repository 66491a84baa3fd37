"""Where llama.cpp's sequences lie."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.llama_streams import PASS_TOKENS, Streams

COUNT = 7
SETS = st.sets(st.integers(0, COUNT - 1), min_size=1).map(sorted)
LENGTHS = st.lists(st.integers(0, 3000), min_size=COUNT, max_size=COUNT)


def passes(streams: Streams, running: list[int]) -> int:
    taken = {streams.of(sequence) for sequence in running}
    return sum(stream - 1 not in taken for stream in taken)


def settle(streams: Streams, running: list[int], lengths: list[int]) -> list[tuple[int, int]]:
    """Steps until the sequences are moved, or need not be."""
    for _ in range(100):
        pairs = streams.due(running, lengths)
        if pairs or passes(streams, running) == 1:
            break
    for one, other in pairs:
        streams.swap(one, other)
    return pairs


@given(st.lists(st.tuples(SETS, LENGTHS), max_size=5))
def test_what_runs_long_enough_ends_up_in_one_pass(
    history: list[tuple[list[int], list[int]]],
) -> None:
    streams = Streams(COUNT)
    for running, lengths in history:
        pairs = settle(streams, running, lengths)
        assert passes(streams, running) == 1
        assert sorted(streams.of(sequence) for sequence in range(COUNT)) == list(range(COUNT))
        # Only running sequences move, each against one that does not run.
        assert all(one in running and other not in running for one, other in pairs)
        moved = [sequence for pair in pairs for sequence in pair]
        assert len(moved) == len(set(moved))


@given(SETS, LENGTHS)
def test_the_cheapest_place_is_chosen(running: list[int], lengths: list[int]) -> None:
    pairs = settle(Streams(COUNT), running, lengths)
    copied = sum(lengths[one] + lengths[other] for one, other in pairs)
    for start in range(COUNT - len(running) + 1):
        window = set(range(start, start + len(running)))
        assert copied <= sum(lengths[sequence] for sequence in window ^ set(running))


def test_neighbours_stay_where_they_are() -> None:
    streams = Streams(4)
    assert all(streams.due([1, 2, 3], [0, 9000, 9000, 9000]) == [] for _ in range(50))


def test_a_copy_waits_until_the_wasted_passes_have_paid_for_it() -> None:
    lengths = [PASS_TOKENS * 3, 0, PASS_TOKENS * 5]
    streams = Streams(3)
    assert streams.due([0, 2], lengths) == []
    assert streams.due([0, 2], lengths) == []
    assert streams.due([0, 2], lengths) == [(0, 1)]


def test_empty_streams_are_used_at_once() -> None:
    assert Streams(3).due([0, 2], [0, 0, 5]) == [(0, 1)]
