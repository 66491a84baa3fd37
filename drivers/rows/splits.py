"""Dividing rows into those that train, those that steer the training and those that judge it.

The same rows, shares and seed divide the same, in whatever order they come. Equal rows, and with
`by_group` rows of one group, fall on the same side, so that nothing held out was trained on. Each
label keeps its share on every side as nearly as whole clusters allow, and every label has a row to
train on.

Source: the order of assignment is that of iterative stratification, Sechidis, Tsoumakas and
Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from llmos.drivers.rows.content import identity, labels_of
from llmos.drivers.rows.kinds import Row
from llmos.syscalls.errors import SyscallError

R = TypeVar("R", bound=Row)

TRAIN, DEV, TEST = range(3)


class Split(NamedTuple, Generic[R]):
    """Rows by what they are for; each side in the order in which the rows came."""

    train: list[R]
    dev: list[R]
    test: list[R]


@dataclass(frozen=True, slots=True)
class _Cluster:
    """Rows that stay together, by index."""

    rows: tuple[int, ...]
    labels: Counter[str]
    rank: bytes


def split(
    rows: Sequence[R],
    *,
    eval_share: float,
    test_share: float = 0.0,
    seed: int = 0,
    stratify: bool = False,
    by_group: bool = False,
) -> Split[R]:
    """Divide rows. A share over zero gets at least one row, and at least one is left to train.

    Raises: SyscallError("invalid") when a share cannot be held out because too few rows differ (or
    too few groups), or the shares leave nothing to train on.
    """
    if min(eval_share, test_share) < 0 or eval_share + test_share >= 1:
        raise SyscallError(
            "invalid",
            f"eval_share: {eval_share} and test_share {test_share} must be 0 or more and leave "
            "some rows to train on",
            field="eval_share",
        )
    shares = (1 - eval_share - test_share, eval_share, test_share)
    sides = [side for side in (TRAIN, DEV, TEST) if shares[side] > 0]
    if sides == [TRAIN]:
        return Split(list(rows), [], [])
    clusters = _clusters(rows, seed=seed, stratify=stratify, by_group=by_group)
    if len(clusters) < len(sides):
        what = "groups" if by_group else "rows"
        raise SyscallError(
            "invalid",
            f"eval_share: holding rows out needs at least {len(sides)} different {what}, and there "
            f"are {len(clusters)}; give more data or set it to 0",
            field="eval_share",
        )
    placed = _place(clusters, shares, sides)
    side_of = {row: side for cluster, side in placed for row in cluster.rows}
    divided: tuple[list[R], list[R], list[R]] = ([], [], [])
    for index, row in enumerate(rows):
        divided[side_of[index]].append(row)
    return Split(*divided)


def _place(
    clusters: Sequence[_Cluster], shares: Sequence[float], sides: Sequence[int]
) -> list[tuple[_Cluster, int]]:
    """A side for each cluster, large ones first: where its labels are missing most."""
    sizes: Counter[str] = Counter()
    for cluster in clusters:
        sizes.update(cluster.labels)
    missing = {
        side: {label: shares[side] * size for label, size in sizes.items()} for side in sides
    }
    total = {side: shares[side] * sum(sizes.values()) for side in sides}
    trained: set[str] = set()
    placed: list[tuple[_Cluster, int]] = []
    for cluster in sorted(clusters, key=lambda one: (-len(one.rows), one.rank)):

        def need(side: int, cluster: _Cluster = cluster) -> tuple[float, float, int]:
            lacking = sum(missing[side][label] for label in cluster.labels)
            return round(lacking, 9), round(total[side], 9), -side

        side = TRAIN if cluster.labels.keys() - trained else max(sides, key=need)
        if side == TRAIN:
            trained |= cluster.labels.keys()
        for label, count in cluster.labels.items():
            missing[side][label] -= count
            total[side] -= count
        placed.append((cluster, side))
    return _without_empty(placed, sides)


def _without_empty(
    placed: list[tuple[_Cluster, int]], sides: Sequence[int]
) -> list[tuple[_Cluster, int]]:
    """Give each side that got nothing the smallest cluster of the side that has most of them."""
    for empty in sides:
        counts = Counter(side for _, side in placed)
        if counts[empty]:
            continue
        giver = max(sides, key=lambda side: counts[side])
        index = max(i for i, (_, side) in enumerate(placed) if side == giver)
        placed[index] = (placed[index][0], empty)
    return placed


def _clusters(rows: Sequence[Row], *, seed: int, stratify: bool, by_group: bool) -> list[_Cluster]:
    """Rows that must stay together: joined by equal content, and by group where asked."""
    parents = list(range(len(rows)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    digests = [identity(row) for row in rows]
    first: dict[object, int] = {}
    for index, row in enumerate(rows):
        keys: list[object] = [digests[index]]
        if by_group and row.group is not None:
            keys.append(row.group)
        for key in keys:
            parents[root(index)] = root(first.setdefault(key, index))
    members: dict[int, list[int]] = {}
    for index in range(len(rows)):
        members.setdefault(root(index), []).append(index)
    clusters: list[_Cluster] = []
    for indexes in members.values():
        labels: Counter[str] = Counter()
        for index in indexes:
            labels.update((labels_of(rows[index]) if stratify else ()) or ("",))
        least = min(digests[index] for index in indexes)
        rank = hashlib.sha256(f"{seed}:".encode() + least).digest()
        clusters.append(_Cluster(tuple(indexes), labels, rank))
    return clusters
