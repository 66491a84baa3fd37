from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmos.memory.blobs import Blobs, DamagedBlob, files_of


@contextmanager
def full_disk(at_bytes: int) -> Iterator[None]:
    """No file can grow beyond a size: the system refuses as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def contents(blobs: Blobs) -> list[str]:
    return [path.name for path in blobs._all()]


def test_equal_files_are_kept_once(blobs: Blobs, tmp_path: Path) -> None:
    one = blobs.put(write(tmp_path / "a", b"weights"))
    other = blobs.put(write(tmp_path / "b", b"weights"))
    assert one == other
    assert contents(blobs) == [one.sha256]
    assert blobs.path(one.sha256).read_bytes() == b"weights"


def test_a_kept_file_does_not_change_with_its_source(blobs: Blobs, tmp_path: Path) -> None:
    source = write(tmp_path / "a", b"first")
    blob = blobs.put(source)
    source.write_bytes(b"second")
    blobs.check(blob)
    assert blobs.path(blob.sha256).read_bytes() == b"first"


@pytest.mark.parametrize("damage", [b"weightz", b"weight", None])
def test_damage_is_found_and_mended_by_the_same_content(
    blobs: Blobs, tmp_path: Path, damage: bytes | None
) -> None:
    blob = blobs.put(write(tmp_path / "a", b"weights"))
    blobs.check(blob)
    path = blobs.path(blob.sha256)
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(DamagedBlob):
        blobs.check(blob)
    blobs.put(tmp_path / "a")
    blobs.check(blob)


def test_a_full_disk_leaves_nothing_of_a_content(blobs: Blobs, tmp_path: Path) -> None:
    kept = blobs.put(write(tmp_path / "small", b"x"))
    source = write(tmp_path / "large", bytes(3_000_000))
    with full_disk(1_000_000), pytest.raises(OSError, match="File too large"):
        blobs.put(source)
    assert contents(blobs) == [kept.sha256]


def test_a_sweep_deletes_what_nobody_needs_and_what_a_crash_left(
    blobs: Blobs, tmp_path: Path
) -> None:
    kept = blobs.put(write(tmp_path / "a", b"aa"))
    blobs.put(write(tmp_path / "b", b"bbb"))
    write(tmp_path / "blobs" / ".partial-" / "tmp123", b"half")
    assert blobs.sweep({kept.sha256}) == 7
    assert contents(blobs) == [kept.sha256]


def test_hidden_files_are_nobodys(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    for name in ("b", "sub/a", ".cache/x", ".lock"):
        write(tmp_path / name, b"")
    assert [name for name, _ in files_of(tmp_path)] == ["b", "sub/a"]
    assert files_of(tmp_path / "b") == [("b", tmp_path / "b")]
    with pytest.raises(FileNotFoundError):
        files_of(tmp_path / "nothing")
