"""Vector indexes: what is found, filters before k, and removal, for both kinds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from llmos.memory import vectors_build
from llmos.memory.allowed import Allowed
from llmos.memory.vectors import (
    FlatIndex,
    Index,
    ListIndex,
    nearest_of,
    unit_vectors,
)
from llmos.memory.vectors_build import TARGET, Sample, build, lists_for, sample_size

RANDOM = np.random.default_rng(7)
MATRIX = unit_vectors(RANDOM.standard_normal((200, 8)), 8)
IDS = np.arange(1, 201) * 3


def flat() -> Index:
    index = FlatIndex(8)
    index.add(IDS, MATRIX)
    return index


def lists() -> Index:
    """Ten lists of which every one is searched: as exact as sixteen bits are."""
    index = ListIndex.around(MATRIX[:10].copy(), trained_on=200)
    index.add(IDS, MATRIX, index.place(MATRIX))
    index.probes = 10
    return index


both = pytest.mark.parametrize("filled", [flat, lists])
Filled = Callable[[], Index]


def nearest(query: np.ndarray, among: np.ndarray, k: int) -> list[int]:
    places = np.searchsorted(IDS, among)
    return among[np.argsort(-(MATRIX[places] @ query))[:k]].tolist()


@both
def test_the_nearest_are_found(filled: Filled) -> None:
    query = MATRIX[17]
    found = filled().search(query, 5)
    assert [note for note, _ in found] == nearest(query, IDS, 5)
    assert found[0] == (IDS[17], pytest.approx(1.0, abs=2e-3))


@both
def test_a_filter_applies_before_the_k_are_chosen(filled: Filled) -> None:
    query, some = MATRIX[17], IDS[100::7]
    found = filled().search(query, 5, Allowed.of(some))
    assert [note for note, _ in found] == nearest(query, some, 5)


@both
def test_fewer_allowed_than_k_gives_only_those(filled: Filled) -> None:
    assert len(filled().search(MATRIX[0], 50, Allowed.of(IDS[:3]))) == 3
    assert filled().search(MATRIX[0], 50, Allowed.of(IDS[:0])) == []


def test_a_filter_that_leaves_out_what_is_nearest_has_all_lists_searched() -> None:
    index = lists()
    assert isinstance(index, ListIndex)
    index.probes = index.fewest = 1
    places = index.place(MATRIX)
    assert places is not None
    for query, place in zip(MATRIX[:20], places[:20], strict=True):
        far = IDS[places != place]
        found = [note for note, _ in index.search(query, 5, Allowed.of(far))]
        assert found == nearest(query, far, 5)


@both
def test_removed_vectors_are_not_found(filled: Filled) -> None:
    index = filled()
    index.remove(IDS[:100])
    index.remove(IDS[:100])
    assert index.ids.tolist() == IDS[100:].tolist() and len(index) == 100
    assert {note for note, _ in index.search(MATRIX[0], 200)} == set(IDS[100:].tolist())
    index.add(IDS[:1], MATRIX[:1])
    assert index.search(MATRIX[0], 1)[0][0] == IDS[0]


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.01])
def test_k_are_found_among_few_however_few_lists_are_searched(share: float) -> None:
    index = lists()
    assert isinstance(index, ListIndex)
    index.probes = 1
    some = RANDOM.choice(IDS, max(2, int(share * len(IDS))), replace=False)
    for query in MATRIX[::20]:
        found = index.search(query, 10, Allowed.of(some))
        assert len(found) == min(10, len(some))
        assert {note for note, _ in found} <= set(some.tolist())


def everything(matrix: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(matrix), 700):
        part = matrix[start : start + 700]
        yield np.arange(start, start + len(part), dtype=np.int64), part


def built(matrix: np.ndarray) -> ListIndex:
    order = RANDOM.permutation(len(matrix))[: sample_size(len(matrix))]
    index = build(
        Sample(order.astype(np.int64), matrix[order]),
        everything(matrix),
        len(matrix),
        cores=1,
        should_stop=lambda: False,
    )
    assert index is not None
    return index


@pytest.mark.parametrize("spread", [0.2, 100.0])
def test_the_lists_searched_are_as_many_as_the_data_need(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With clusters few, without clusters most; the recall on other queries is what was said."""
    monkeypatch.setattr(vectors_build, "LEAST_LOOKED_AT", 1)
    centres = RANDOM.standard_normal((40, 24))
    points = centres[RANDOM.integers(0, 40, 3000)] + spread * RANDOM.standard_normal((3000, 24))
    matrix = unit_vectors(points, 24)
    index = built(matrix)
    assert index.lists == lists_for(3000) and len(index) == 3000
    assert (index.probes <= 10) == (spread < 1)
    assert index.recall.share >= TARGET
    found = total = 0
    for query in matrix[::30]:
        true = {int(place) for place in np.argsort(-(matrix @ query))[:10]}
        found += len(true & {note for note, _ in index.search(query, 10)})
        total += 10
    assert found / total > 0.97


def test_no_search_looks_at_so_few_that_recall_is_lost_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vectors_build, "LEAST_LOOKED_AT", 1000)
    centres = RANDOM.standard_normal((40, 24))
    points = centres[RANDOM.integers(0, 40, 3000)] + 0.1 * RANDOM.standard_normal((3000, 24))
    index = built(unit_vectors(points, 24))
    assert index.probes == math.ceil(index.lists / 3)
    monkeypatch.setattr(vectors_build, "LEAST_LOOKED_AT", 5000)
    index = built(unit_vectors(points, 24))
    assert index.probes == index.lists and index.recall.share > 0.999


def test_equal_vectors_do_not_count_against_the_recall() -> None:
    """Of thirty copies any ten are the ten nearest."""
    matrix = np.repeat(unit_vectors(RANDOM.standard_normal((100, 8)), 8), 30, axis=0)
    assert built(matrix).recall.share >= TARGET


@pytest.mark.parametrize("looks", [0, 8])
def test_a_build_stops_when_told(looks: int) -> None:
    matrix = unit_vectors(RANDOM.standard_normal((500, 8)), 8)
    answers = iter([*[False] * looks, True])
    sample = Sample(np.arange(500), matrix)
    stopped = build(sample, everything(matrix), 500, cores=1, should_stop=lambda: next(answers))
    assert stopped is None


def test_the_nearest_of_few_are_exact() -> None:
    found = nearest_of(IDS[:50], MATRIX[:50], MATRIX[3:4], 4)
    assert [note for note, _ in found] == nearest(MATRIX[3], IDS[:50], 4)
    assert nearest_of(IDS[:0], MATRIX[:0], MATRIX[:1], 4) == []


@pytest.mark.parametrize(
    ("vectors", "what"),
    [
        ([[1.0, 2.0]], "2 dimensions"),
        ([[0.0, 0.0, 0.0]], "zeros"),
        ([[1.0, float("nan"), 0.0]], "finite"),
        ([[1.0, float("inf"), 0.0]], "finite"),
    ],
)
def test_unusable_vectors_are_refused(vectors: list[list[float]], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        unit_vectors(vectors, 3)


def test_huge_and_tiny_vectors_keep_their_direction() -> None:
    unit = unit_vectors([[1e308, 1e308, 0.0], [1e-308, 0.0, 0.0]], 3)
    assert np.allclose(unit, [[0.5**0.5, 0.5**0.5, 0.0], [1.0, 0.0, 0.0]])
    assert unit_vectors([], 3).shape == (0, 3)
