"""An index's file: it is trusted only when whole, and when it is of this store and not later."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from llmos.memory.changes import Version
from llmos.memory.folder import INDEX_FILE
from llmos.memory.vectors import FlatIndex, Index, ListIndex, Recall, unit_vectors
from llmos.memory.vectors_file import Loaded, load, save

MATRIX = unit_vectors(np.random.default_rng(7).standard_normal((200, 8)), 8)
IDS = np.arange(1, 201) * 3
VERSION = Version(600, 7, 1)


def flat() -> Index:
    index = FlatIndex(8)
    index.add(IDS, MATRIX)
    return index


def lists() -> Index:
    index = ListIndex.around(MATRIX[:10].copy(), trained_on=150)
    index.add(IDS, MATRIX)
    index.probes, index.fewest, index.recall = 4, 3, Recall(0.99, 100, 10)
    return index


def put(folder: Path, index: Index | None = None) -> Path:
    save(index or flat(), folder, store_id="s", version=VERSION)
    return folder / INDEX_FILE


def get(folder: Path, store_id: str = "s", newest: Version = VERSION) -> Loaded | None:
    return load(folder, dimensions=8, store_id=store_id, newest=lambda: newest)


@pytest.mark.parametrize("made", [flat(), lists()], ids=["flat", "lists"])
def test_a_saved_index_comes_back(tmp_path: Path, made: Index) -> None:
    put(tmp_path, made)
    loaded = get(tmp_path, newest=Version(700, 8, 1))
    assert loaded is not None and loaded.version == VERSION
    index = loaded.index
    assert (index.kind, index.recall) == (made.kind, made.recall)
    assert index.ids.tolist() == IDS.tolist()
    assert index.search(MATRIX[3], 4) == made.search(MATRIX[3], 4)
    if isinstance(index, ListIndex):
        assert (index.probes, index.fewest, index.trained_on) == (4, 3, 150)
    index.remove(IDS[:5])
    index.add(IDS[:1], MATRIX[:1])
    assert len(index) == 196 and index.search(MATRIX[0], 1)[0][0] == IDS[0]


def test_a_missing_file_is_none(tmp_path: Path) -> None:
    assert get(tmp_path) is None


@pytest.mark.parametrize("at", [0.0, 0.3, 0.9, 0.999])
def test_a_flipped_byte_anywhere_is_noticed(
    tmp_path: Path, at: float, caplog: pytest.LogCaptureFixture
) -> None:
    path = put(tmp_path)
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 0x55
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert get(tmp_path) is None
    assert "is not used" in caplog.text and not path.exists()


@pytest.mark.parametrize("kept", [0, 10, 1000, -1])
def test_a_file_cut_short_is_noticed(tmp_path: Path, kept: int) -> None:
    path = put(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    assert get(tmp_path) is None


@pytest.mark.parametrize(
    "newest", [Version(599, 7, 1), Version(600, 6, 1), Version(600, 7, 2), Version(600, 7, 0)]
)
def test_an_index_of_a_later_state_or_another_generation_is_not_used(
    tmp_path: Path, newest: Version
) -> None:
    put(tmp_path)
    assert get(tmp_path, newest=newest) is None


def test_an_index_of_another_store_is_not_used(tmp_path: Path) -> None:
    put(tmp_path)
    assert get(tmp_path, store_id="other") is None
