"""Splits: deterministic, in proportion, without leaks."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.rows.checks import find_leaks
from llmos.drivers.rows.content import identity
from llmos.drivers.rows.kinds import LabelledRow, TaggedRow
from llmos.drivers.rows.splits import split
from llmos.syscalls.errors import SyscallError

_ROWS = st.lists(
    st.tuples(st.sampled_from("abcdefghij"), st.sampled_from("xyz"), st.sampled_from("12345")),
    min_size=3,
    max_size=60,
)
_SHARES = st.sampled_from([(0.1, 0.0), (0.3, 0.2), (0.45, 0.45), (0.0, 0.5), (0.9, 0.0)])


def rows_of(made: list[tuple[str, str, str]]) -> list[LabelledRow]:
    return [LabelledRow(text, label, f"row {i}", g) for i, (text, label, g) in enumerate(made)]


@given(_ROWS, _SHARES, st.booleans(), st.booleans(), st.integers(0, 3))
def test_a_split_loses_nothing_and_leaks_nothing(
    made: list[tuple[str, str, str]],
    shares: tuple[float, float],
    stratify: bool,
    by_group: bool,
    seed: int,
) -> None:
    rows = rows_of(made)
    options = {"eval_share": shares[0], "test_share": shares[1], "seed": seed}
    try:
        done = split(rows, **options, stratify=stratify, by_group=by_group)  # type: ignore[arg-type]
    except SyscallError as refused:
        assert refused.fields["field"] == "eval_share"
        return
    sides = (done.train, done.dev, done.test)
    assert sorted(row.origin for side in sides for row in side) == sorted(r.origin for r in rows)
    assert [bool(side) for side in sides] == [True, shares[0] > 0, shares[1] > 0]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        leaks = find_leaks(sides[one], sides[other])
        assert not [leak for leak in leaks if not leak.what or by_group]


@given(_ROWS, st.integers(0, 5), st.randoms())
def test_a_split_does_not_depend_on_the_order_of_the_rows(
    made: list[tuple[str, str, str]], seed: int, order: random.Random
) -> None:
    rows = rows_of(made)
    mixed = list(rows)
    order.shuffle(mixed)
    if len({identity(row) for row in rows}) < 2:
        return
    one = split(rows, eval_share=0.3, seed=seed, stratify=True)
    other = split(mixed, eval_share=0.3, seed=seed, stratify=True)
    assert {row.origin for row in one.dev} == {row.origin for row in other.dev}


@pytest.mark.parametrize("seed", range(3))
def test_labels_keep_their_shares_and_every_label_is_trained_on(seed: int) -> None:
    sizes = {"many": 200, "some": 50, "few": 10, "rare": 2, "single": 1}
    rows = [
        LabelledRow(f"{label} {i}", label, f"{label} {i}")
        for label, size in sizes.items()
        for i in range(size)
    ]
    done = split(rows, eval_share=0.2, test_share=0.1, seed=seed, stratify=True)
    for side, share in ((done.train, 0.7), (done.dev, 0.2), (done.test, 0.1)):
        counts = Counter(row.label for row in side)
        for label, size in sizes.items():
            assert abs(counts[label] - share * size) <= 1
    assert {row.label for row in done.train} == set(sizes)


def test_seeds_divide_differently_and_one_seed_the_same() -> None:
    rows = [LabelledRow(str(i), "x", str(i)) for i in range(50)]
    devs = [split(rows, eval_share=0.2, seed=seed).dev for seed in (0, 0, 1)]
    assert devs[0] == devs[1] != devs[2]
    assert len(devs[0]) == 10


def test_entities_are_stratified_by_their_kinds() -> None:
    rows = [TaggedRow((str(i),), ("B-per" if i % 2 else "B-loc",), str(i)) for i in range(100)]
    dev = split(rows, eval_share=0.2, stratify=True).dev
    assert Counter(row.tags for row in dev) == {("B-per",): 10, ("B-loc",): 10}


def test_groups_stay_together_even_where_they_are_chained_by_equal_rows() -> None:
    made = [("a", "1"), ("b", "1"), ("b", "2"), ("c", "2"), ("d", "3"), ("e", "4")]
    rows = [LabelledRow(text, "x", str(i), group) for i, (text, group) in enumerate(made)]
    done = split(rows, eval_share=0.3, by_group=True)
    chained = {row.origin for row in rows[:4]}
    for side in (done.train, done.dev):
        assert not chained & {row.origin for row in side} or chained <= {r.origin for r in side}


@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.6, 0.5), (-0.1, 0.2)])
def test_shares_that_leave_nothing_to_train_on_are_refused(shares: tuple[float, float]) -> None:
    rows = [LabelledRow(str(i), "x", str(i)) for i in range(9)]
    with pytest.raises(SyscallError) as refused:
        split(rows, eval_share=shares[0], test_share=shares[1])
    assert refused.value.fields["field"] == "eval_share"


def test_rows_that_are_all_equal_cannot_be_held_out() -> None:
    rows = [LabelledRow("a", "x", str(i)) for i in range(9)]
    with pytest.raises(SyscallError, match="at least 2 different rows"):
        split(rows, eval_share=0.1)
    assert split(rows, eval_share=0.0).train == rows


def test_no_share_for_anything_leaves_all_to_train_on() -> None:
    assert split([], eval_share=0.0) == ([], [], [])
