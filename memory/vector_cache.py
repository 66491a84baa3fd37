"""Vectors of texts that were embedded before, by a hash of the text: in memory, and on disk.

Owns the least recently used order of both and their bounds. What is on disk is one SQLite file that
several kernels may share; it is a copy of what a model can compute again, so it may be lost, and a
damaged one is replaced by an empty one. Holds no text, but a vector tells much of what its text was
about: `clear` leaves nothing of either. Refuses to know models: a key says whose vector it is.

`find` and `add` may block on the disk, `look` never does. Thread-safe.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Vector = list[float]

# One eviction makes this share of the room free, so that there are few of them.
_EVICTED_SHARE = 0.1
# When an entry was used is written at most this often; evictions look back further than that.
_USED_STEP_S = 3_600.0
_BUSY_TIMEOUT_S = 1.0
_ENTRY_BYTES = 64  # a key and what SQLite and a dictionary need beside a vector, roughly

_SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (
    key BLOB PRIMARY KEY,
    vector BLOB NOT NULL,
    used_at REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS vectors_by_use ON vectors (used_at);
"""

log = logging.getLogger(__name__)


def key_of(identity: str, text: str) -> bytes:
    """The key of a text's vector by a model of an identity; equal keys mean equal vectors."""
    named = f"{identity}\n{text}".encode("utf-8", errors="surrogatepass")
    return hashlib.sha256(named).digest()


class VectorCache:
    """At most `memory_bytes` of vectors in memory and `disk_bytes` in `path` (None or 0: no disk).

    The file is opened by the first `find`. No method raises for what the disk does.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        memory_bytes: int,
        disk_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path if disk_bytes > 0 else None
        self._memory_bytes = memory_bytes
        self._disk_bytes = disk_bytes
        self._clock = clock
        self._lock = threading.Lock()  # memory
        self._disk_lock = threading.Lock()  # taken first where both are held
        self._vectors: OrderedDict[bytes, bytes] = OrderedDict()
        self._held_bytes = 0
        self._disk: sqlite3.Connection | None = None

    @property
    def memory_bytes(self) -> int:
        """What is held in memory now."""
        return self._held_bytes

    def look(self, key: bytes) -> Vector | None:
        """A vector that is in memory."""
        with self._lock:
            held = self._vectors.get(key)
            if held is None:
                return None
            self._vectors.move_to_end(key)
        return _unpacked(held)

    def find(self, keys: Iterable[bytes]) -> dict[bytes, Vector]:
        """The vectors that are known of some keys."""
        found: dict[bytes, Vector] = {}
        missing: list[bytes] = []
        for key in keys:
            vector = self.look(key)
            if vector is None:
                missing.append(key)
            else:
                found[key] = vector
        if missing:
            read = self._on_disk(lambda disk: self._read(disk, missing)) or {}
            for key, packed in read.items():
                self._hold(key, packed)
                found[key] = _unpacked(packed)
        return found

    def add(self, vectors: Mapping[bytes, Vector]) -> None:
        """Keep vectors, and let go of those that were not used for longest."""
        packed = {key: array("f", vector).tobytes() for key, vector in vectors.items()}
        for key, value in packed.items():
            self._hold(key, value)
        self._on_disk(lambda disk: self._write(disk, packed))

    def clear(self) -> None:
        """Forget every vector; the file keeps no byte of them."""
        with self._lock:
            self._vectors.clear()
            self._held_bytes = 0
        self._on_disk(_emptied)

    def close(self) -> None:
        """Close the file; the memory's vectors can still be had."""
        with self._disk_lock:
            self._path = None
            if self._disk is not None:
                self._disk.close()
                self._disk = None

    def _hold(self, key: bytes, packed: bytes) -> None:
        with self._lock:
            if key not in self._vectors:
                self._held_bytes += len(packed) + _ENTRY_BYTES
            self._vectors[key] = packed
            self._vectors.move_to_end(key)
            while self._held_bytes > self._memory_bytes:
                _, oldest = self._vectors.popitem(last=False)
                self._held_bytes -= len(oldest) + _ENTRY_BYTES

    # --- the file ---------------------------------------------------------------------------------

    def _on_disk(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """What `work` gives; None where there is no disk, or it refuses: nothing depends on it."""
        with self._disk_lock:
            if self._path is None:
                return None
            try:
                self._disk = self._disk or self._open(self._path)
                return work(self._disk)
            except (sqlite3.Error, OSError) as problem:
                if getattr(problem, "sqlite_errorname", "") in ("SQLITE_BUSY", "SQLITE_FULL"):
                    log.warning("%s is not used for now: %s", self._path, problem)
                    return None
                log.warning("%s cannot be used and is left alone: %s", self._path, problem)
                self._path = None
                if self._disk is not None:
                    self._disk.close()
                    self._disk = None
                return None

    def _open(self, path: Path) -> sqlite3.Connection:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connected(path)
        except sqlite3.DatabaseError as problem:
            if isinstance(problem, sqlite3.OperationalError):
                raise
            log.warning("%s is damaged and begins anew: %s", path, problem)
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                path.with_name(name).unlink(missing_ok=True)
            return _connected(path)

    def _read(self, disk: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, bytes]:
        now = self._clock()
        found: dict[bytes, bytes] = {}
        stale: list[tuple[float, bytes]] = []
        for key in keys:
            row = disk.execute(
                "SELECT vector, used_at FROM vectors WHERE key = ?", (key,)
            ).fetchone()
            if row is None:
                continue
            found[key] = row[0]
            if row[1] < now - _USED_STEP_S:
                stale.append((now, key))
        if stale:
            with disk:
                disk.executemany("UPDATE vectors SET used_at = ? WHERE key = ?", stale)
        return found

    def _write(self, disk: sqlite3.Connection, packed: Mapping[bytes, bytes]) -> None:
        now = self._clock()
        with disk:
            disk.executemany(
                "INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)",
                [(key, vector, now) for key, vector in packed.items()],
            )
        self._evict(disk)

    def _evict(self, disk: sqlite3.Connection) -> None:
        """Delete what was used longest ago while the file holds more than it may."""
        (pages,) = disk.execute("PRAGMA page_count").fetchone()
        (free,) = disk.execute("PRAGMA freelist_count").fetchone()
        (page_bytes,) = disk.execute("PRAGMA page_size").fetchone()
        if (pages - free) * page_bytes <= self._disk_bytes:
            return
        with disk:
            (count,) = disk.execute("SELECT count(*) FROM vectors").fetchone()
            disk.execute(
                "DELETE FROM vectors WHERE key IN"
                " (SELECT key FROM vectors ORDER BY used_at LIMIT ?)",
                (max(1, int(count * _EVICTED_SHARE)),),
            )


def _connected(path: Path) -> sqlite3.Connection:
    disk = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, check_same_thread=False)
    try:
        disk.execute("PRAGMA secure_delete = ON")
        disk.execute("PRAGMA journal_mode = WAL")
        disk.execute("PRAGMA synchronous = NORMAL")
        disk.executescript(_SCHEMA)
    except BaseException:
        disk.close()
        raise
    return disk


def _emptied(disk: sqlite3.Connection) -> None:
    with disk:
        disk.execute("DELETE FROM vectors")
    # The log has the old pages until it is folded in and cut.
    disk.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _unpacked(packed: bytes) -> Vector:
    return array("f", packed).tolist()
