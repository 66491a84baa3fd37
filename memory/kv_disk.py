"""The disk below host memory: saved KV is written on a thread of its own, and read when asked for.

Owns the writer and the measured rate of reading; the files' form is `kv_folder.py`'s, and what is
worth a file is decided one level up. All methods are for one thread, which a write never holds up.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from llmos.memory.kv_folder import Kept, KVFolder
from llmos.memory.kv_owner import Owner

log = logging.getLogger("llmos.memory")

# Until the first file was read.
_READ_BYTE_S = 1 / 500e6
_LEARN = 0.2


class _Writing(NamedTuple):
    state_bytes: int
    file: Future[Kept]


class Disk:
    """A folder of files with a writer."""

    def __init__(self, folder: KVFolder) -> None:
        self._folder = folder
        self._writer: ThreadPoolExecutor | None = None
        self._writing: dict[int, _Writing] = {}
        self._read_byte_s = _READ_BYTE_S  # to read a byte and to check it

    @property
    def writing(self) -> dict[int, int]:
        """What is on its way: bytes of state, by number."""
        return {number: writing.state_bytes for number, writing in self._writing.items()}

    def start(self, number: int, owner: Owner, tokens: tuple[int, ...], state: bytes) -> None:
        """Begin to write a state; `written` tells when it has been."""
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="kv-disk")
        file = self._writer.submit(self._folder.write, owner, tokens, state)
        self._writing[number] = _Writing(len(state), file)

    def written(self) -> list[tuple[int, Kept | None]]:
        """What has been written since the last time; None where that failed, after a warning."""
        found: list[tuple[int, Kept | None]] = []
        for number, (_, file) in [item for item in self._writing.items() if item[1].file.done()]:
            del self._writing[number]
            if file.cancelled():
                continue
            problem = file.exception()
            if problem is not None:
                log.warning("saved KV cannot be written: %s", problem)
            found.append((number, None if problem is not None else file.result()))
        return found

    def write(self, owner: Owner, tokens: tuple[int, ...], state: bytes) -> Kept | None:
        """Write a state at once; None, after a warning, when that fails."""
        try:
            return self._folder.write(owner, tokens, state)
        except OSError as problem:
            log.warning("saved KV cannot be written: %s", problem)
            return None

    def read(self, file: Kept) -> bytes | None:
        """The state in a file; None, after a warning, when it is damaged or gone."""
        started = time.perf_counter()
        state = self._folder.read(file)
        took_s = time.perf_counter() - started
        self._read_byte_s += _LEARN * (took_s / file.file_bytes - self._read_byte_s)
        return state

    def read_s(self, size: int) -> float:
        """Seconds that reading so many bytes takes."""
        return self._read_byte_s * size

    def delete(self, file: Kept) -> None:
        """Delete a file, if it is there."""
        self._folder.delete(file)

    def stop(self) -> None:
        """Wait for the write under way; those that have not begun are called off."""
        if self._writer is not None:
            self._writer.shutdown(cancel_futures=True)
            self._writer = None
