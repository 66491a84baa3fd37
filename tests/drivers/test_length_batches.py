"""Batches of like lengths: every row once, within the budget, with little padding."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.length_batches import length_batches


@given(st.lists(st.integers(1, 300)), st.integers(100, 400))
def test_every_row_is_in_one_batch_that_fits(lengths: list[int], batch_tokens: int) -> None:
    batches = list(length_batches(lengths, batch_tokens=batch_tokens))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[place] for place in batch)
        assert len(batch) == 1 or len(batch) * longest <= batch_tokens


@given(st.lists(st.integers(1, 300)), st.integers(100, 400), st.integers(0, 100))
def test_no_batch_has_more_padding_than_another_would_cost(
    lengths: list[int], batch_tokens: int, start_tokens: int
) -> None:
    batches = list(length_batches(lengths, batch_tokens=batch_tokens, start_tokens=start_tokens))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        own = [lengths[place] for place in batch]
        assert len(batch) * max(own) - sum(own) <= start_tokens
        assert len(batch) == 1 or len(batch) * max(own) <= batch_tokens


def test_rows_of_like_length_are_together() -> None:
    assert list(length_batches([9, 1, 8, 2], batch_tokens=20)) == [[1, 3], [2, 0]]
