"""Continual learning: what replay draws, what averaging leaves, what counts as forgotten."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.rows.kinds import LabelledRow
from llmos.drivers.training.continual import (
    ForgettingMatrix,
    ReplayBuffer,
    average,
    snapshot,
    with_replay,
)
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


def test_replay_is_the_asked_share_equally_many_of_each_task() -> None:
    earlier = [rows("a", 100), rows("b", 100), rows("c", 4)]
    mixed = with_replay(rows("new", 80), earlier, share=0.2, seed=0)
    counts = Counter(row.label for row in mixed)
    assert counts == {"new": 80, "a": 8, "b": 8, "c": 4}
    assert len(set(mixed)) == len(mixed)
    assert mixed == with_replay(rows("new", 80), earlier, share=0.2, seed=0)
    assert mixed != with_replay(rows("new", 80), earlier, share=0.2, seed=1)


def test_averaging_moves_trainable_weights_towards_what_they_were() -> None:
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    before = snapshot(model)
    assert set(before) == {"weight"}
    with torch.no_grad():
        model.weight += 1.0
    average(model, before, 0.25)
    assert torch.allclose(model.weight, before["weight"] + 0.75)


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
