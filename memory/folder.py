"""The store's folder: its files, locks between processes, and renames that last.

A lock is advisory and dies with its holder: the operating system releases a `flock` when the
process ends, however it ends, so a killed kernel leaves nothing to clean up. The file's text only
tells people who holds it.

Not protected: network file systems that do not implement `flock`, or SQLite's shared memory.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from llmos.syscalls.errors import ConfigError

DATABASE_FILE = "notes.db"  # the truth
WAL_FILE = "notes.db-wal"  # SQLite's write-ahead log: part of the truth while it exists
INDEX_FILE = "vectors.faiss"  # derived
OPEN_LOCK_FILE = "lock"  # held while a database is made or migrated; by format 1 while it is used
BUILD_LOCK_FILE = "index.lock"  # held while an index is built or written

_WAIT_S = 10.0
_LOOK_AGAIN_S = 0.02


class FileLock:
    """Holds a lock file until `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, path: Path) -> FileLock | None:
        """The lock, or None when another one has it. Raises: OSError when it cannot be written."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}\n".encode(), 0)
        return cls(descriptor)

    @classmethod
    def wait(cls, path: Path, wait_s: float = _WAIT_S) -> FileLock:
        """The lock, as soon as it is free. Raises: ConfigError that names who has it for long."""
        deadline_s = time.monotonic() + wait_s
        while (lock := cls.take(path)) is None:
            if time.monotonic() > deadline_s:
                holder = path.read_text(errors="replace").strip() or "another process"
                raise ConfigError(
                    "folder",
                    f"the memory store in {path.parent} is in use by {holder}; end that kernel, or "
                    "give this one another folder",
                )
            time.sleep(_LOOK_AGAIN_S)
        return lock

    def release(self) -> None:
        """Let the next one in; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def replace_durably(source: Path, target: Path) -> None:
    """Rename over `target` so that after a power cut either the old or the new content is there."""
    _sync(source)
    source.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
