"""The vector index: exact search, filters before k, and a file that is trusted only when whole."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from llmos.memory.folder import INDEX_FILE
from llmos.memory.vectors import VectorIndex, unit_vectors

RANDOM = np.random.default_rng(7)
MATRIX = unit_vectors(RANDOM.standard_normal((200, 8)).tolist(), 8)
IDS = np.arange(1, 201) * 3


def filled() -> VectorIndex:
    index = VectorIndex(8)
    index.add(IDS, MATRIX)
    return index


def nearest(query: np.ndarray, among: np.ndarray, k: int) -> list[int]:
    places = np.searchsorted(IDS, among)
    return among[np.argsort(-(MATRIX[places] @ query))[:k]].tolist()


def test_the_nearest_are_found_exactly() -> None:
    query = MATRIX[17]
    found = filled().search(query, 5, IDS)
    assert [note for note, _ in found] == nearest(query, IDS, 5)
    assert found[0] == (IDS[17], pytest.approx(1.0, abs=1e-6))


def test_a_filter_applies_before_the_k_are_chosen() -> None:
    query, allowed = MATRIX[17], IDS[100::7]
    found = filled().search(query, 5, allowed)
    assert [note for note, _ in found] == nearest(query, allowed, 5)


def test_fewer_allowed_than_k_gives_only_those() -> None:
    assert len(filled().search(MATRIX[0], 50, IDS[:3])) == 3
    assert filled().search(MATRIX[0], 50, IDS[:0]) == []
    assert VectorIndex(8).search(MATRIX[0], 5, IDS) == []


def test_removed_vectors_are_not_found() -> None:
    index = filled()
    index.remove(IDS[:100])
    assert index.ids.tolist() == IDS[100:].tolist()
    assert {note for note, _ in index.search(MATRIX[0], 200, IDS[100:])} == set(IDS[100:].tolist())


def save(index: VectorIndex, folder: Path) -> Path:
    index.save(folder, store_id="s", last_id=600)
    return folder / INDEX_FILE


def load(folder: Path, store_id: str = "s", last_id: int = 600) -> VectorIndex:
    return VectorIndex.load(folder, dimensions=8, store_id=store_id, last_id=last_id)


def test_a_saved_index_comes_back(tmp_path: Path) -> None:
    save(filled(), tmp_path)
    index = load(tmp_path)
    assert index.is_saved
    assert index.ids.tolist() == IDS.tolist()
    assert index.search(MATRIX[3], 4, IDS) == filled().search(MATRIX[3], 4, IDS)
    index.remove(IDS[:1])
    assert not index.is_saved


def test_a_missing_file_is_an_empty_index(tmp_path: Path) -> None:
    assert len(load(tmp_path)) == 0


@pytest.mark.parametrize("at", [0.0, 0.3, 0.9, 0.999])
def test_a_flipped_byte_anywhere_discards_the_file(
    tmp_path: Path, at: float, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(filled(), tmp_path)
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 0x55
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert len(load(tmp_path)) == 0
    assert "is not used" in caplog.text
    assert not path.exists()


@pytest.mark.parametrize("kept", [0, 10, 1000, -1])
def test_a_file_cut_short_is_discarded(tmp_path: Path, kept: int) -> None:
    path = save(filled(), tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    assert len(load(tmp_path)) == 0


def test_an_index_of_another_store_or_a_later_state_is_discarded(tmp_path: Path) -> None:
    save(filled(), tmp_path)
    assert len(load(tmp_path, store_id="other")) == 0
    save(filled(), tmp_path)
    assert len(load(tmp_path, last_id=599)) == 0


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
