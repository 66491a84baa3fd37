"""What every way of fetching a model shares: progress, its result, copying, its refusal."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from llmos.memory.model_source import Source
from llmos.syscalls.errors import SyscallError

# Stage, bytes done, bytes in all where known.
Progress = Callable[[str, int, int | None], None]

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Fetched:
    """What is known of a model beyond its files, and the download that may be thrown away."""

    download: Path | None = None
    licence: str | None = None
    revision: str | None = None

    def discard(self) -> None:
        """Delete the kept download."""
        if self.download is not None:
            shutil.rmtree(self.download, ignore_errors=True)


def copy_stream(source: IO[bytes], to: Path, done: int, report: Callable[[int], None]) -> int:
    """Write a stream to a new file, reporting `done` plus its bytes so far; returns their sum."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            file.write(chunk)
            done += len(chunk)
            report(done)
    return done


def not_available(source: Source, why: str) -> SyscallError:
    """The refusal of a download, with the way around."""
    return SyscallError(
        "not_available",
        f"{source} could not be downloaded: {why}. Check the network and try again, or bring the "
        "file by other means and pull it as file:PATH",
        is_retryable=True,
        source=str(source),
    )
