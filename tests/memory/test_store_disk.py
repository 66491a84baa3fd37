"""A disk that is full, refuses or is read-only: a typed error, and the store stays whole."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmos.memory.query import Query
from llmos.memory.store import Store
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError

DIMENSIONS = 64


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB; only root can mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "llmos-test", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """No file may grow over `size_bytes`: a write then fails, as on a disk with a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def put(store: Store, batch: int) -> None:
    notes = [Note(text=f"kernel {batch}.{part} " + "x" * 2000) for part in range(10)]
    vectors = [[1.0, batch, part, *[0.5] * (DIMENSIONS - 3)] for part in range(10)]
    store.remember("a", notes, vectors)


def fill(store: Store) -> tuple[int, SyscallError]:
    """Remember until the disk refuses: the batches stored, and the error."""
    for batch in range(10_000):
        try:
            put(store, batch)
        except SyscallError as problem:
            return batch, problem
    raise AssertionError("the disk never filled up")


def assert_whole(store: Store, batches: int) -> None:
    assert store.stat().items == len(store._nearest.index) == 10 * batches
    hits = store.retrieve(Query(text="kernel", k=1000, mode="lexical", namespaces=["a"])).hits
    assert len(hits) == 10 * batches
    assert store.check().problems == ()


def test_a_full_disk_refuses_and_loses_nothing(small_disk: Path) -> None:
    folder = small_disk / "memory"
    store = Store(folder, dimensions=DIMENSIONS)
    batches, problem = fill(store)
    assert problem.code == "storage"
    assert str(folder / "notes.db") in problem.message and "full" in problem.message
    with pytest.raises(SyscallError):
        put(store, batches)
    assert_whole(store, batches)
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    put(store, batches)
    store.close()
    reopened = Store(folder, dimensions=DIMENSIONS)
    assert_whole(reopened, batches + 1)
    reopened.close()


def test_an_index_that_cannot_be_saved_costs_nothing_but_time(small_disk: Path) -> None:
    store = Store(small_disk / "memory", dimensions=DIMENSIONS)
    put(store, 0)
    store.flush()
    saved = (small_disk / "memory" / "vectors.faiss").read_bytes()
    put(store, 1)
    store._database.checkpoint()
    ballast = small_disk / "ballast"
    with pytest.raises(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(SyscallError) as caught:
        store.close()
    assert caught.value.code == "storage"
    assert (small_disk / "memory" / "vectors.faiss").read_bytes() == saved
    assert not (small_disk / "memory" / "vectors.faiss.new").exists()
    ballast.unlink()
    reopened = Store(small_disk / "memory", dimensions=DIMENSIONS)
    assert_whole(reopened, 2)
    reopened.close()


def test_a_disk_without_room_for_a_new_store_says_so(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(4 * 1024 * 1024 - 8192))
    with pytest.raises(SyscallError) as caught:
        Store(small_disk / "memory", dimensions=DIMENSIONS)
    assert caught.value.code == "storage"
    (small_disk / "ballast").unlink()
    Store(small_disk / "memory", dimensions=DIMENSIONS).close()


def test_a_read_only_disk_says_so(small_disk: Path) -> None:
    folder = small_disk / "memory"
    Store(folder, dimensions=DIMENSIONS).close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(SyscallError) as caught:
        Store(folder, dimensions=DIMENSIONS)
    assert caught.value.code == "storage" and "Read-only" in caught.value.message


def test_a_file_size_limit_refuses_and_loses_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, dimensions=DIMENSIONS)
    with largest_file(1 << 20):
        batches, problem = fill(store)
        assert problem.code == "storage" and str(tmp_path / "notes.db") in problem.message
        assert_whole(store, batches)
    put(store, batches)
    store.close()
    reopened = Store(tmp_path, dimensions=DIMENSIONS)
    assert_whole(reopened, batches + 1)
    reopened.close()
