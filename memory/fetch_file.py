"""A model that lies on this machine already."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from llmos.memory.fetched import Fetched, Progress, copy_stream
from llmos.memory.model_source import FileSource
from llmos.syscalls.errors import SyscallError


def fetch_file(source: FileSource, target: Path, progress: Progress) -> Fetched:
    """Fill `target` with a file, or with all files below a folder.

    Raises: SyscallError("not_found"); OSError.
    """
    origin = source.path
    if not origin.exists():
        raise SyscallError("not_found", f"there is no {origin}", what="file", name=str(origin))
    paths = [origin] if origin.is_file() else [p for p in origin.rglob("*") if p.is_file()]
    base = origin.parent if origin.is_file() else origin
    total, done = sum(path.stat().st_size for path in paths), 0
    for path in paths:
        done = _link_or_copy(
            path,
            target / path.relative_to(base),
            done,
            lambda so_far: progress("copying", so_far, total),
        )
    return Fetched()


def _link_or_copy(origin: Path, to: Path, done: int, report: Callable[[int], None]) -> int:
    """A hard link costs no space; across file systems, and where links are refused, a copy."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(origin.resolve(), to)
    except OSError:
        with origin.open("rb") as file:
            return copy_stream(file, to, done, report)
    report(done + to.stat().st_size)
    return done + to.stat().st_size
