"""The files of versions: their contents, each once, and for each version a folder of links to them.

Owns `blobs/` and `versions/` in the registry's folder, and the lock that lets one change them at a
time, whichever thread or process makes it. Refuses to know the database; `registry.py` says which
contents and which versions are still needed. Blocking.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from llmos.memory.blobs import Blob, Blobs, DamagedBlob, files_of, flush_folder, link
from llmos.syscalls.errors import SyscallError


class TakenIn(NamedTuple):
    """A version's files as they are kept. `path` is relative to the registry's folder."""

    path: str
    files: Mapping[str, Blob]

    @property
    def size_bytes(self) -> int:
        return sum(blob.size_bytes for blob in self.files.values())

    @property
    def digest(self) -> str:
        """What tells these files from all others; empty where there are none."""
        if not self.files:
            return ""
        lines = (f"{name} {blob.sha256}\n" for name, blob in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


class VersionFiles:
    """The files in one registry's folder. Changes need `changing`; raises OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blobs = Blobs(folder / "blobs")

    @contextmanager
    def changing(self, *, is_waiting: bool = True) -> Generator[bool]:
        """Be the only one who changes files, for this block.

        Gives whether that is so: who does not wait for another must then leave the files alone.
        """
        with (self._folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if is_waiting else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True

    def take_in(self, name: str, source: Path) -> TakenIn:
        """Copy a version's files, and give it a folder of links to them.

        Raises: SyscallError("invalid") when there is nothing at the source. Contents that were
        copied before something else failed are for `discard` or `sweep`.
        """
        try:
            found = files_of(source)
        except FileNotFoundError:
            raise SyscallError(
                "invalid", f"path: there is nothing at {source}", field="path"
            ) from None
        files = {file: self._blobs.put(path) for file, path in found}
        tree = self._tree(name)
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        for file, blob in files.items():
            link(self._blobs.path(blob.sha256), tree / file)
        flush_folder(tree)
        path = tree if source.is_dir() else tree / source.name
        return TakenIn(str(path.relative_to(self._folder)), files)

    def check(self, name: str, files: Mapping[str, Blob]) -> None:
        """Read what was not read yet of a version's files, and mend its folder of links.

        Raises: SyscallError("storage") naming the first file that is damaged.
        """
        for file, blob in files.items():
            path = self._blobs.path(blob.sha256)
            try:
                self._blobs.check(blob)
            except DamagedBlob as problem:
                raise SyscallError(
                    "storage",
                    f"the version {name} is damaged: {file}: {problem} (kept as {path}); add a "
                    "version with the same file again, which mends it, or roll back to another one",
                    path=str(path),
                    name=name,
                    file=file,
                ) from problem
            target = self._tree(name) / file
            if not target.exists():
                link(path, target)

    def discard(
        self, name: str, files: Mapping[str, Blob], is_needed: Callable[[str], bool]
    ) -> int:
        """Delete a version's folder and the contents that are not needed; returns bytes freed."""
        shutil.rmtree(self._tree(name), ignore_errors=True)
        contents = {blob.sha256 for blob in files.values()}
        return sum(self._blobs.discard(sha256) for sha256 in contents if not is_needed(sha256))

    def sweep(self, names: Collection[str], contents: Collection[str]) -> None:
        """Delete what a crash left: all but these versions and contents."""
        self._blobs.sweep(contents)
        trees, known = self._folder / "versions", {self._tree(name).name for name in names}
        if trees.is_dir():
            for left in trees.iterdir():
                if left.name not in known:
                    shutil.rmtree(left, ignore_errors=True)

    def _tree(self, name: str) -> Path:
        return self._folder / "versions" / quote(name, safe="")
