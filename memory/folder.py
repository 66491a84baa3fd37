"""The store's folder: its files, the one kernel that may use it, and renames that last.

The lock is advisory and dies with its holder: the operating system releases a `flock` when the
process ends, however it ends, so a killed kernel leaves nothing to clean up. The file's text only
tells people who holds it.

Not protected: network file systems that do not implement `flock`.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from llmos.syscalls.errors import ConfigError

DATABASE_FILE = "notes.db"  # the truth
WAL_FILE = "notes.db-wal"  # SQLite's write-ahead log: part of the truth while it exists
INDEX_FILE = "vectors.faiss"  # derived
LOCK_FILE = "lock"


class FolderLock:
    """Holds `folder/lock` until `release`.

    Raises: ConfigError naming the holder when another kernel has it; OSError when the folder cannot
    be written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_FILE
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            holder = path.read_text(errors="replace").strip() or "another process"
            self.release()
            raise ConfigError(
                "folder",
                f"the memory store in {folder} is in use by {holder}; end that kernel, or give "
                "this one another folder",
            ) from problem
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next kernel in; a second call does nothing."""
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
