"""The files of a folder, in order, one at a time.

Left out: what is hidden, what tools make again, and links, which would lead out of the folder or
round in it. A path that is named itself is taken whatever it is called.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llmos.memory.ingest.document import FileRefused

_MADE_AGAIN = frozenset({"__pycache__", "node_modules"})


class Found(NamedTuple):
    """A regular file, with its size and time of change as it was found."""

    path: Path
    size_bytes: int
    mtime_ns: int


class Refused(NamedTuple):
    """A path that could not be looked at."""

    path: Path
    refusal: FileRefused


def walk(path: Path) -> Iterator[Found | Refused]:
    """The regular files at and below an absolute path, sorted by name in each folder."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            yield from _folder(path)
        else:
            yield _file(path, status)
    except OSError as problem:
        yield Refused(path, unreadable(problem))


def unreadable(problem: OSError) -> FileRefused:
    """What the operating system said, as a refusal of the file."""
    return FileRefused(
        "unreadable", f"{problem.strerror or problem}; let this user read it, or leave it out"
    )


def _folder(folder: Path) -> Iterator[Found | Refused]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as problem:
        yield Refused(folder, unreadable(problem))
        return
    for entry in listed:
        if entry.name.startswith(".") or entry.name in _MADE_AGAIN or entry.is_symlink():
            continue
        path = folder / entry.name
        if entry.is_dir():
            yield from _folder(path)
            continue
        try:
            yield _file(path, entry.stat())
        except OSError as problem:
            yield Refused(path, unreadable(problem))


def _file(path: Path, status: os.stat_result) -> Found | Refused:
    if not stat.S_ISREG(status.st_mode):
        return Refused(path, FileRefused("unreadable", "it is no file, but a device or a pipe"))
    if not _is_unicode(str(path)):
        shown = Path(os.fsencode(path).decode(errors="replace"))
        return Refused(shown, FileRefused("unreadable", "its name is not UTF-8; rename it"))
    return Found(path, status.st_size, status.st_mtime_ns)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
