"""The nearest notes to a vector: the index in memory, kept up with the database, and its filters.

The index follows the database: before a search it takes in what this or another process committed
since (`changes.py`). It is exact while small; past `MOST_FLAT` vectors one with lists is built in a
background thread, from the database, while searches and writes go on with the old one, and again
each time there are `GROWN` times as many. One process of those that share a store builds and writes
the index's file; the others find it there.

Whose notes a search sees is decided here: the index holds all namespaces, so every search is given
the set that it may return, except when that set is the whole index.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock, Thread, get_native_id
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from llmos.memory import notes as rows
from llmos.memory.allowed import AllowedSets
from llmos.memory.changes import Version, deleted_between, vectors_between, version
from llmos.memory.damage import damaged, storage_errors
from llmos.memory.database import Database
from llmos.memory.faiss_library import all_cores
from llmos.memory.filters import Filter
from llmos.memory.folder import BUILD_LOCK_FILE, FileLock
from llmos.memory.shared_lock import SharedLock
from llmos.memory.vectors import FlatIndex, Index, ListIndex, nearest_of
from llmos.memory.vectors_build import Sample, build, sample_size
from llmos.memory.vectors_file import Loaded, load, save
from llmos.syscalls.errors import SyscallError

if TYPE_CHECKING:
    from llmos.memory.notes import Matrix
    from llmos.memory.vectors import Found, Ids

MOST_FLAT = 20_000  # a search of so many takes 1 ms
GROWN = 3.0  # an index with lists is built anew when there are so many times as many vectors
STALE_SHARE = 0.02  # a file that is further behind is written anew when the store closes
_BACKGROUND_NICENESS = 10
_UNKNOWN = Version(-1, -1, -1)  # of an index that must be made anew
_FAR_BEHIND = 64  # new vectors, which a search takes in within 0.5 ms; each by itself takes 0.2 ms
_NEARLY = 10_000  # so many new vectors are taken in while searches wait for a new index

log = logging.getLogger(__name__)


class NearestNotes:
    """The vector index of an open store. Thread-safe."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder
        self._sets = AllowedSets()
        self._lock = SharedLock()  # shared: search; alone: add, remove, replace
        self._catching_up = Lock()
        self._stop = Event()
        self._builder: Thread | None = None
        self._starting = Lock()
        self._next_try = MOST_FLAT
        with storage_errors(database.path), database.reading() as sql:
            self.dimensions = _dimensions(sql)
            loaded = self._load(sql)
            self._index: Index = FlatIndex(self.dimensions) if loaded is None else loaded.index
            self._version = _UNKNOWN if loaded is None else loaded.version
            self._saved: Version | None = None if loaded is None else loaded.version
            self._saved_items = len(self._index)
            self.catch_up(sql)

    # --- searching ---

    def search(self, sql: sqlite3.Connection, unit: Matrix, chosen: Filter, k: int) -> Found:
        """The k notes that pass a filter with the highest cosine to a unit vector, best first.

        k of them if that many pass. Raises: SyscallError("invalid") for a vector of another size.
        """
        seen = self.catch_up(sql)
        sets = self._sets
        allowed = sets.find(sql, chosen, seen)
        k = min(k, allowed.count)
        if not k:
            return []
        with self._lock.shared():
            index = self._index
            if unit.size != index.dimensions:  # the model was changed a moment ago
                raise SyscallError(
                    "invalid",
                    f"the vector has {unit.size} dimensions, the store {index.dimensions}",
                    field="vector",
                )
            # A set never holds what the index does not, once the index has come as far as the set:
            # so if they are equally many, they are the same.
            is_as_far = self._sets is sets and self._version.last_id >= seen.last_id
            if is_as_far and allowed.count == len(index):
                return index.search(unit, k)
            if not index.sees_few(allowed):
                return index.search(unit, k, allowed)
        ids = np.flatnonzero(np.unpackbits(allowed.bits, bitorder="little"))
        few = ids if allowed.ids is None else allowed.ids
        return self._among_few(sql, few, unit, k)

    def _among_few(self, sql: sqlite3.Connection, few: Ids, unit: Matrix, k: int) -> Found:
        ids, vectors = rows.vectors_of(sql, few, self.dimensions)
        return nearest_of(ids, vectors, unit, k)

    # --- following the database ---

    def is_far_behind(self, last_id: int) -> bool:
        """Whether a search would have much to take in, once it sees notes up to an id."""
        return last_id - self._version.last_id >= _FAR_BEHIND

    def catch_up(self, sql: sqlite3.Connection) -> Version:
        """Take in what was committed since the last time; the state that the index has come to.

        `sql` is outside any transaction. Raises: SyscallError("storage") for a damaged database.
        """
        newest = version(sql)
        if newest == self._version:
            return newest
        with self._catching_up, _snapshot(sql):
            newest = version(sql)
            try:
                if newest.generation != self._version.generation:
                    self._make_anew(sql, newest)
                elif newest != self._version:
                    self._take_in(sql, newest)
            except BaseException as problem:
                # What is half in the index cannot be told from what is not.
                self._version = _UNKNOWN
                if isinstance(problem, ValueError):
                    raise damaged(self._database.path, str(problem)) from problem
                raise
        self._consider_building()
        return newest

    def _take_in(self, sql: sqlite3.Connection, newest: Version) -> None:
        index, since = self._index, self._version
        gone = _deleted(sql, index, since, newest)
        if len(gone):
            # From the sets first: a set never holds what the index does not.
            self._sets.remove(gone)
            with self._lock.alone():
                index.remove(gone)
        for ids, vectors in vectors_between(sql, since.last_id, newest.last_id, self.dimensions):
            places = index.place(vectors)  # the costly part, while searches go on
            with self._lock.alone():
                index.add(ids, vectors, places)
        self._version = newest

    def _make_anew(self, sql: sqlite3.Connection, newest: Version) -> None:
        """Read all vectors, while searches go on with the index that was there."""
        dimensions = _dimensions(sql)
        index = FlatIndex(dimensions)
        for ids, vectors in vectors_between(sql, 0, newest.last_id, dimensions):
            index.add(ids, vectors)
        if len(index) != rows.count(sql):
            raise ValueError("a note has no whole vector")
        with self._lock.alone():
            self.dimensions, self._index, self._version = dimensions, index, newest
            self._sets = AllowedSets()
        if len(index):
            log.info("%d vectors were read from the database", len(index))

    # --- building ---

    @property
    def index(self) -> Index:
        """The index that searches use now."""
        return self._index

    @property
    def is_building(self) -> bool:
        """Whether a better index is being built in the background."""
        return self._builder is not None and self._builder.is_alive()

    def build(self) -> None:
        """Build the index that is best for what is there now, with all cores, unless it is in use.

        Waits for another build first. Raises: SyscallError("busy") when another process builds.
        """
        self._wait_for_builder()
        if len(self._index) < MOST_FLAT or _is_fit(self._index, len(self._index)):
            return
        if not self._build(all_cores()):
            raise SyscallError(
                "busy", "another process builds this store's index; try again", is_retryable=True
            )

    def _consider_building(self) -> None:
        items = len(self._index)
        trained_on = self._index.trained_on if isinstance(self._index, ListIndex) else 0
        if items < max(self._next_try, GROWN * trained_on) or self._stop.is_set():
            return
        with self._starting:
            if not self.is_building:
                self._next_try = items + items // 10
                self._builder = Thread(
                    target=self._build_in_background, name="memory-index", daemon=True
                )
                self._builder.start()

    def _build_in_background(self) -> None:
        os.setpriority(os.PRIO_PROCESS, get_native_id(), _BACKGROUND_NICENESS)
        try:
            self._build(max(1, all_cores() // 2))
        except Exception:
            # Searches go on with the index that they have; the next growth tries again.
            log.exception("the vector index could not be built")

    def _build(self, cores: int) -> bool:
        """Build, save and use an index with lists; whether this process could."""
        lock = FileLock.take(self._folder / BUILD_LOCK_FILE)
        if lock is None:
            return False
        try:
            with self._database.reading() as sql:
                newest = version(sql)
                found = self._load(sql)
                if found is not None and _is_fit(found.index, len(self._index)):
                    self._use(sql, found.index, found.version)  # another process has built it
                    return True
                index = self._built(sql, newest, cores)
                if index is not None:
                    try:
                        self._save(index, newest)
                    except OSError as problem:  # a full disk: it serves all the same
                        log.warning("the new vector index is used, but not saved: %s", problem)
                    self._use(sql, index, newest)
                return True
        finally:
            lock.release()

    def _load(self, sql: sqlite3.Connection) -> Loaded | None:
        return load(
            self._folder,
            dimensions=self.dimensions,
            store_id=self._database.store_id,
            newest=lambda: version(sql),
        )

    def _built(self, sql: sqlite3.Connection, since: Version, cores: int) -> ListIndex | None:
        ids = rows.all_ids(sql)
        size = sample_size(len(ids))
        chosen = np.random.default_rng(since.last_id).choice(ids, size, replace=False)
        found, vectors = rows.vectors_of(sql, chosen, self.dimensions)
        order = np.random.default_rng(1).permutation(len(found))
        return build(
            Sample(found[order], vectors[order]),
            vectors_between(sql, 0, since.last_id, self.dimensions),
            len(ids),
            cores=cores,
            should_stop=self._stop.is_set,
        )

    def _use(self, sql: sqlite3.Connection, index: ListIndex, since: Version) -> None:
        """Bring a new index to the newest state, mostly while searches go on; then search it."""
        while version(sql).last_id - since.last_id > _NEARLY:
            since = self._bring(sql, index, since)
        with self._catching_up:
            newest = self._bring(sql, index, since)
            if newest.generation != self._version.generation:
                return  # the model was changed meanwhile
            with self._lock.alone():
                self._index, self._version = index, newest

    def _bring(self, sql: sqlite3.Connection, index: ListIndex, since: Version) -> Version:
        with _snapshot(sql):
            newest = version(sql)
            gone = _deleted(sql, index, since, newest)
            self._sets.remove(gone)
            index.remove(gone)
            for ids, vectors in vectors_between(
                sql, since.last_id, newest.last_id, self.dimensions
            ):
                index.add(ids, vectors)
            return newest

    # --- the file ---

    @property
    def is_stale(self) -> bool:
        """Whether the file is so far behind that reading it would save little."""
        if self._saved is None:
            return len(self._index) > 0
        behind = self._version.last_id - self._saved.last_id + self._version.seq - self._saved.seq
        return behind > STALE_SHARE * self._saved_items

    def save(self) -> Version | None:
        """Write the index beside the database; the state that the file has, if there is one.

        Does nothing while another process builds or writes it. Raises: OSError.
        """
        if self._saved == self._version:
            return self._saved
        lock = FileLock.take(self._folder / BUILD_LOCK_FILE)
        if lock is None:
            return self._saved
        try:
            with self._catching_up:  # nobody changes it, and searches go on
                self._save(self._index, self._version)
        finally:
            lock.release()
        return self._saved

    def _save(self, index: Index, state: Version) -> None:
        save(index, self._folder, store_id=self._database.store_id, version=state)
        self._saved, self._saved_items = state, len(index)

    def stop(self) -> None:
        """End a build in the background, waiting for it."""
        self._stop.set()
        self._wait_for_builder()

    def _wait_for_builder(self) -> None:
        with self._starting:  # a thread cannot be waited for before it was started
            builder = self._builder
        if builder is not None:
            builder.join()


def _is_fit(index: Index, items: int) -> TypeGuard[ListIndex]:
    """Whether an index has lists, and about as many as are good for so many vectors."""
    return isinstance(index, ListIndex) and (
        index.trained_on / GROWN <= items <= index.trained_on * GROWN**0.5
    )


def _deleted(sql: sqlite3.Connection, index: Index, since: Version, newest: Version) -> Ids:
    gone = deleted_between(sql, since.seq, newest.seq)
    if gone is None:  # too far behind for the log
        gone = np.setdiff1d(index.ids, rows.all_ids(sql), assume_unique=True)
    return gone


def _dimensions(sql: sqlite3.Connection) -> int:
    return sql.execute("SELECT dimensions FROM store").fetchone()[0]


@contextmanager
def _snapshot(sql: sqlite3.Connection) -> Generator[None]:
    """Everything that the block reads is of one state."""
    sql.execute("BEGIN")
    try:
        yield
    finally:
        sql.execute("COMMIT")
