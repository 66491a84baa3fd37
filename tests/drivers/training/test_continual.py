"""Continual learning: what a buffer keeps, what counts as forgotten."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.rows.kinds import LabelledRow
from llmos.drivers.training.continual import ForgettingMatrix, ReplayBuffer
from llmos.syscalls.errors import SyscallError


def rows(label: str, count: int) -> list[LabelledRow]:
    return [LabelledRow(f"{label} {n}", label, f"{label}:{n}") for n in range(count)]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 40))
def test_a_buffer_keeps_within_its_capacity_and_in_balance(sizes: list[int], capacity: int) -> None:
    buffer = ReplayBuffer(capacity)
    for number, size in enumerate(sizes):
        buffer.add(rows(str(number), size))
        assert len(buffer) <= capacity
    counts = Counter(row.label for row in buffer.rows() if isinstance(row, LabelledRow))
    assert len(buffer) == min(capacity, sum(sizes)) or len(buffer) == capacity
    full = [counts[str(n)] for n, size in enumerate(sizes) if counts[str(n)] < size]
    if full:  # labels that had to give are within one row of the largest
        assert max(counts.values()) - min(full) <= 1


def test_a_buffer_of_nothing_is_refused() -> None:
    with pytest.raises(SyscallError, match="one row or more"):
        ReplayBuffer(0)


def test_forgetting_is_measured_from_the_best(tmp_path: Path) -> None:
    matrix = ForgettingMatrix()
    matrix.learnt("first", [0.9])
    assert matrix.final == 0.9 and matrix.forgetting == 0.0
    matrix.learnt("second", [0.5, 0.8])
    matrix.learnt("third", [0.6, 0.9, 1.0])
    assert matrix.final == pytest.approx(2.5 / 3)
    assert matrix.forgetting == pytest.approx(0.15)
    matrix.picture(tmp_path / "matrix.png", title="replay")
    assert (tmp_path / "matrix.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="1 accuracies for 4 tasks"):
        matrix.learnt("fourth", [0.5])
