"""The cache of vectors: what it keeps, what it lets go of, and what a damaged file costs."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from llmos.memory.vector_cache import Vector, VectorCache, key_of

KEYS = [key_of("model", f"text {n}") for n in range(4_000)]


def vector(n: int) -> Vector:
    draw = random.Random(n)
    return [float(draw.randrange(1_000)) for _ in range(64)]


def cache(path: Path | None, *, memory: int = 1_000_000, disk: int = 10_000_000) -> VectorCache:
    return VectorCache(path, memory_bytes=memory, disk_bytes=disk)


def test_a_key_tells_models_and_texts_apart() -> None:
    assert key_of("a", "text") == key_of("a", "text")
    assert len({key_of("a", "text"), key_of("b", "text"), key_of("a", "other")}) == 3
    assert key_of("a", "\ud800")  # a text need not be valid Unicode


def test_what_was_added_is_found_by_the_next_kernel(tmp_path: Path) -> None:
    first = cache(tmp_path / "vectors.db")
    first.add({KEYS[0]: vector(0), KEYS[1]: vector(1)})
    first.close()
    second = cache(tmp_path / "vectors.db")
    assert second.look(KEYS[0]) is None
    assert second.find(KEYS[:3]) == {KEYS[0]: vector(0), KEYS[1]: vector(1)}
    assert second.look(KEYS[0]) == vector(0)
    second.close()


def test_memory_keeps_what_was_used_last() -> None:
    small = cache(None, memory=3 * (64 * 4 + 64))
    for n in range(3):
        small.add({KEYS[n]: vector(n)})
    assert small.look(KEYS[0]) == vector(0)
    small.add({KEYS[3]: vector(3)})
    assert small.look(KEYS[1]) is None
    assert small.look(KEYS[0]) == vector(0)
    assert small.memory_bytes <= 3 * (64 * 4 + 64)


def test_the_file_stays_within_its_bound_and_keeps_what_is_newest(tmp_path: Path) -> None:
    clock = iter(range(10_000))
    path = tmp_path / "vectors.db"
    bounded = VectorCache(
        path, memory_bytes=0, disk_bytes=300_000, clock=lambda: float(next(clock))
    )
    for n in range(0, 4_000, 100):
        bounded.add({KEYS[m]: vector(m) for m in range(n, n + 100)})
    assert bounded.find(KEYS[3_900:]).keys() == set(KEYS[3_900:])
    assert not bounded.find(KEYS[:100])
    bounded.close()
    assert path.stat().st_size < 450_000


def test_after_clear_no_byte_of_a_vector_is_in_any_file(tmp_path: Path) -> None:
    path = tmp_path / "vectors.db"
    secret = hashlib.sha256(b"secret").digest()
    cleared = cache(path)
    cleared.add({secret: vector(7), **{KEYS[n]: vector(n) for n in range(100)}})
    cleared.clear()
    assert not cleared.find([secret, *KEYS[:100]])
    for file in tmp_path.iterdir():
        assert secret not in file.read_bytes(), file
    cleared.close()


def test_a_damaged_file_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "vectors.db"
    path.write_bytes(b"this is no database" * 1_000)
    fresh = cache(path)
    fresh.add({KEYS[0]: vector(0)})
    fresh.close()
    again = cache(path)
    assert again.find(KEYS[:1]) == {KEYS[0]: vector(0)}
    again.close()


def test_a_folder_that_cannot_be_written_costs_the_disk_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    without = cache(tmp_path / "file" / "vectors.db")
    without.add({KEYS[0]: vector(0)})
    assert without.find(KEYS[:2]) == {KEYS[0]: vector(0)}
    assert "cannot be used" in caplog.text
    without.close()
