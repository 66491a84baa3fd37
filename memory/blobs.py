"""Files by their content: each is kept once, under the SHA-256 of its bytes.

Owns one folder, `XX/SHA256` in it for each content. A content appears by a rename of its finished
file, so a crash leaves a whole one or none. Files are read-only; who wants them by their names
makes links to them. Refuses to know what they are and who needs them: `sweep` is told.

Not safe beside itself: one change at a time (`registry.py` holds a lock). Blocking.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

_CHUNK_BYTES = 1 << 20
_PARTIAL = ".partial-"


class Blob(NamedTuple):
    """A content: its SHA-256 in hex, and its size."""

    sha256: str
    size_bytes: int


class DamagedBlob(Exception):
    """A content is missing or is not what its name says; the message tells which of the two."""


class Blobs:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # what was read and found right, by its state on disk then
        self._checked: dict[str, tuple[int, int, int]] = {}

    def path(self, sha256: str) -> Path:
        """Where a content is, or would be."""
        return self._folder / sha256[:2] / sha256

    def put(self, source: Path) -> Blob:
        """Keep the content of a file, and mend it where what is kept of it is damaged.

        Raises: OSError; nothing is left of a content that could not be written.
        """
        sha256 = _hash(source)
        blob = Blob(sha256, source.stat().st_size)
        try:
            self.check(blob)
        except DamagedBlob:
            return self._write(source)
        return blob

    def check(self, blob: Blob) -> None:
        """Read a content and compare; what was right and has not changed is not read again.

        Raises: DamagedBlob; OSError.
        """
        path = self.path(blob.sha256)
        try:
            state = path.stat()
        except FileNotFoundError:
            raise DamagedBlob("it is missing") from None
        if state.st_size != blob.size_bytes:
            raise DamagedBlob(f"it has {state.st_size:,} bytes, not {blob.size_bytes:,}")
        seen = (state.st_ino, state.st_mtime_ns, state.st_ctime_ns)
        if self._checked.get(blob.sha256) == seen:
            return
        if _hash(path) != blob.sha256:
            raise DamagedBlob("its bytes have changed")
        self._checked[blob.sha256] = seen

    def discard(self, sha256: str) -> int:
        """Delete a content; returns the bytes freed."""
        path = self.path(sha256)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        self._checked.pop(sha256, None)
        return size

    def sweep(self, needed: Collection[str]) -> int:
        """Delete every content that is not needed, and what a crash left; returns bytes freed."""
        freed = 0
        for path in self._all():
            if path.name not in needed:
                freed += path.stat().st_size
                path.unlink()
        return freed

    def _all(self) -> Iterator[Path]:
        if self._folder.is_dir():
            for shelf in sorted(self._folder.iterdir()):
                yield from sorted(shelf.iterdir())

    def _write(self, source: Path) -> Blob:
        """Copy and hash in one go: the source may have changed since it was hashed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        shelf = self._folder / _PARTIAL
        shelf.mkdir(exist_ok=True)
        number, name = tempfile.mkstemp(dir=shelf)
        partial = Path(name)
        try:
            digest, size = hashlib.sha256(), 0
            with source.open("rb") as reader, os.fdopen(number, "wb") as writer:
                while chunk := reader.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    writer.write(chunk)
                    size += len(chunk)
                writer.flush()
                os.fsync(writer.fileno())
            partial.chmod(0o444)
            blob = Blob(digest.hexdigest(), size)
            target = self.path(blob.sha256)
            target.parent.mkdir(exist_ok=True)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        flush_folder(target.parent)
        return blob


def files_of(path: Path) -> list[tuple[str, Path]]:
    """A file, or all files of a folder but hidden ones, by their names in it.

    Raises: OSError when there is nothing.
    """
    if not path.is_dir():
        path.stat()
        return [(path.name, path)]
    found: list[tuple[str, Path]] = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                file = Path(folder, name)
                found.append((file.relative_to(path).as_posix(), file))
    return sorted(found)


def link(blob: Path, target: Path) -> None:
    """Make `target` a link to a content, relative so that the whole store can be moved."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(os.path.relpath(blob, target.parent))


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
