"""The map of forks that still read another's stream."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.llama_forks import Forks


def test_a_fork_of_a_fork_reads_the_first_holder() -> None:
    forks = Forks()
    forks.note(0, 1)
    forks.note(1, 2)
    assert (forks.holder(0), forks.holder(1), forks.holder(2)) == (None, 0, 0)
    forks.settle(1)
    assert (forks.holder(1), forks.holder(2)) == (None, 0)


def test_the_reader_that_needs_most_takes_over_what_its_holder_drops() -> None:
    forks = Forks()
    lengths = [9, 4, 7, 0]
    for reader in (1, 2):
        forks.note(0, reader)
    assert forks.heir(0, 7, lengths) is None
    assert forks.heir(0, 5, lengths) == 2
    forks.inherit(0, 2)
    assert (forks.holder(2), forks.holder(1), forks.holder(0)) == (None, 2, 2)


def test_a_sequence_that_nobody_reads_has_no_heir() -> None:
    forks = Forks()
    forks.note(0, 1)
    assert forks.heir(2, 0, [5, 5, 5]) is None
    assert forks.heir(1, 0, [5, 5, 5]) is None


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 9))))
def test_a_holder_reads_nobody_and_holds_at_least_what_its_readers_do(
    moves: list[tuple[int, int, int]],
) -> None:
    forks, lengths = Forks(), [10, 0, 0, 0, 0]
    for one, other, tokens in moves:
        if lengths[one] and not lengths[other]:
            forks.note(one, other)
            lengths[other] = max(1, lengths[one] * tokens // 10)
        elif tokens < lengths[one]:
            heir = None if forks.holder(one) is not None else forks.heir(one, tokens, lengths)
            if heir is not None:
                forks.inherit(one, heir)
            lengths[one] = tokens
            if not tokens:
                forks.settle(one)
        for reader in range(5):
            holder = forks.holder(reader)
            if holder is not None:
                assert forks.holder(holder) is None
                assert lengths[holder] >= lengths[reader] > 0
