"""The long-term store: what processes remember, found again by meaning and by words.

One crash-safe unit of two parts: the SQLite database is the truth (`database.py`, `notes.py`), the
FAISS index (`vectors.py`) is derived from it and caught up on open. A call that has returned is on
the disk; a call that raised has changed nothing. Refuses to know who may use which namespace (the
kernel's gate) and how text becomes vectors (the embedding driver).

Every method blocks and may be called from any thread. One lock serialises them: database and index
change together, and a call takes milliseconds.

Not protected: BM25 weighs words by how rare they are in the whole store, so scores (not contents)
depend on other namespaces.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from llmos.memory import notes as rows
from llmos.memory import usage
from llmos.memory.changes import version
from llmos.memory.conditions import parse, refuse_unknown
from llmos.memory.damage import damaged, storage_errors
from llmos.memory.database import Database
from llmos.memory.decay import DEFAULT as DECAY
from llmos.memory.decay import Decay, faded_ids
from llmos.memory.filters import Filter
from llmos.memory.folder import INDEX_FILE, FolderLock
from llmos.memory.knowledge import related
from llmos.memory.query import Query
from llmos.memory.reader import Reader
from llmos.memory.search import search
from llmos.memory.usage import Usage
from llmos.memory.vectors import VectorIndex, unit_vectors
from llmos.memory.writing import Entered, Near, enter, nearly_there
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Facts, Forgotten, Hits, MemoryInfo, Remembered
from llmos.syscalls.values import JsonObject

if TYPE_CHECKING:
    import sqlite3

    from llmos.memory.vectors import Matrix

log = logging.getLogger(__name__)


class Store:
    """The store in `folder`, opened or created, for vectors of `dimensions`.

    Raises: ConfigError when another kernel uses the folder, or it was written by a newer version or
    for other dimensions; SyscallError("storage") when the disk refuses or the database is damaged.
    """

    def __init__(
        self, folder: Path, *, dimensions: int, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder = folder
        self.dimensions = dimensions
        self._clock = clock
        self._usage = Usage()
        self._mutex = Lock()
        self._is_open = False
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(folder)
        try:
            self._database = Database(folder, dimensions=dimensions)
            try:
                with storage_errors(self._database.path):
                    self._index = self._open_index()
            except BaseException:
                self._database.close()
                raise
        except BaseException:
            self._lock.release()
            raise
        self._is_open = True

    # --- the calls ---

    def remember(
        self,
        namespace: str,
        notes: Sequence[Note],
        vectors: Sequence[Sequence[float]],
        *,
        owner: str | None = None,
        merge_above: float | None = None,
    ) -> Remembered:
        """Store notes with one vector each; all or none.

        `ids` are in the notes' order; `writing.py` says when one is there already and gives its old
        id. `owner` and `merge_above` are as in `calls.Remember`.
        Raises: SyscallError("invalid") naming the field; SyscallError("storage").
        """
        if len(notes) != len(vectors):
            raise SyscallError(
                "invalid", f"{len(notes)} notes but {len(vectors)} vectors", field="vectors"
            )
        matrix = self._unit_vectors(vectors, field="vectors")
        prepared = [rows.prepare(namespace, note) for note in notes]
        with self._use() as now:
            entered: list[Entered] = []
            fresh: dict[int, int] = {}  # new id to its row in `matrix`
            try:
                with self._usage.batch() as used, self._database.transaction() as sql:
                    usage.write(sql, used)
                    expired = rows.expired(sql, now)
                    rows.delete(sql, expired)
                    reader = Reader(sql, nearest=self._nearest, dimensions=self.dimensions, now=now)
                    near = nearly_there(reader, namespace, notes, matrix, merge_above=merge_above)
                    for place, row in enumerate(prepared):
                        known = near.get(place, Near())
                        twin = known.note if known.place is None else entered[known.place].note
                        blob = matrix[place].astype("<f4").tobytes()
                        one = enter(sql, namespace, row, blob, now, owner=owner, near=twin)
                        if one.is_new:
                            fresh[one.note] = place
                        entered.append(one)
                    # Before the commit, so that a failure here undoes the transaction as well.
                    self._index.add(list(fresh), matrix[list(fresh.values())])
            except BaseException:
                self._index.remove(list(fresh))
                raise
            self._index.remove(expired)
        return Remembered(
            ids=tuple(one.note for one in entered),
            duplicates=len(entered) - len(fresh),
            superseded=tuple(note for one in entered for note in one.superseded),
        )

    def retrieve(self, query: Query) -> Hits:
        """The k best live notes for a query; `search.py` says how they are ranked.

        Raises: SyscallError("invalid") naming the field; SyscallError("storage").
        """
        unit = None
        if query.mode != "lexical":
            if query.vector is None:
                raise SyscallError("invalid", f"{query.mode} search needs a vector", field="vector")
            unit = self._unit_vectors([query.vector], field="vector")
        with self.reading() as reader:
            found = search(reader, query, unit, reader.now)
        self._usage.add([hit.id for hit in found.hits], reader.now)
        if self._usage.is_full:
            self._write_usage()
        return found

    @contextmanager
    def reading(self) -> Generator[Reader]:
        """The store for one thread to read from in this block. Raises: as `retrieve`."""
        with self._use() as now, self._database.reading() as sql:
            yield Reader(sql, nearest=self._nearest, dimensions=self.dimensions, now=now)

    def related(
        self,
        entity: str,
        *,
        hops: int,
        namespaces: Sequence[str],
        at: float | None = None,
        with_history: bool = False,
        limit: int = 100,
    ) -> Facts:
        """Facts about an entity and those that they lead to; `knowledge.py` says how.

        Raises: SyscallError("storage").
        """
        with self.reading() as reader:
            chosen = Filter(namespaces, reader.now, at=at, with_history=with_history)
            return related(reader.sql, entity, chosen, hops=hops, limit=limit)

    def forget(
        self,
        namespaces: str | Sequence[str],
        *,
        ids: Sequence[int] = (),
        source: str | None = None,
        where: JsonObject | None = None,
        owner: str | None = None,
        everything: bool = False,
    ) -> Forgotten:
        """Delete the notes of some namespaces that match every selector given, history included.

        Raises: SyscallError("invalid") without any selector, or for a field of `where` that no note
        has; SyscallError("storage").
        """
        if not (ids or source is not None or where or owner is not None or everything):
            raise SyscallError(
                "invalid",
                "name what to forget: ids, a source, metadata, an owner, or everything",
                field="ids",
            )
        spaces = [namespaces] if isinstance(namespaces, str) else namespaces
        with self._use() as now:
            chosen = Filter(
                spaces,
                now,
                where or {},
                source,
                list(ids) or None,
                owner=owner,
                with_history=True,
            )
            with self._database.transaction() as sql:
                gone = rows.select_ids(sql, chosen)
                if not len(gone):
                    refuse_unknown(sql, parse(chosen.where), spaces)
                rows.delete(sql, gone)
            self._index.remove(gone)
        return Forgotten(count=len(gone))

    def decay(self, how: Decay = DECAY, *, namespaces: Sequence[str] | None = None) -> Forgotten:
        """Delete what has faded in some namespaces (None: in all); `decay.py` says what fades.

        Raises: SyscallError("storage").
        """
        self._write_usage()
        with self._use() as now:
            with self._database.transaction() as sql:
                gone = np.array(faded_ids(sql, now, how, namespaces=namespaces), dtype=np.int64)
                rows.delete(sql, gone)
            self._index.remove(gone)
        return Forgotten(count=len(gone))

    def _write_usage(self) -> None:
        with self._usage.batch() as used:
            if used:
                self.record(lambda sql: usage.write(sql, used))

    def record(self, write: Callable[[sqlite3.Connection], None]) -> None:
        """Run `write` in a transaction; it may touch no table that a search reads."""
        with self._use(), self._database.transaction() as sql:
            write(sql)

    def stat(self, namespaces: Sequence[str] | None = None) -> MemoryInfo:
        """What the store holds in some namespaces (None: all), and its sizes as a whole."""
        with self._use() as now:
            counts = rows.count_by_namespace(self._database.connection, namespaces, now)
            return MemoryInfo(
                items=sum(count.items for count in counts),
                dimensions=self.dimensions,
                index=self._index.kind,
                index_bytes=self._index.size_bytes,
                database_bytes=self._database.size_bytes(),
                namespaces=counts,
            )

    def namespaces(self) -> list[str]:
        """Every namespace that has a note. Raises: SyscallError("storage")."""
        with self.reading() as reader:
            return rows.namespaces(reader.sql)

    def index_bytes(self) -> int:
        """Resident bytes of the index, for the memory ledger; never waits."""
        return self._index.size_bytes

    # --- the files ---

    def flush(self) -> None:
        """Save the index and fold the write-ahead log into the database.

        Nothing acknowledged depends on it; it makes the next open fast.
        """
        with self._use():
            self._flush()

    def close(self) -> None:
        """Flush, close the files and let another kernel in; a second call does nothing.

        Also when the flush fails, everything is closed.
        """
        with self._mutex:
            if not self._is_open:
                return
            self._is_open = False
            try:
                with storage_errors(self.folder):
                    with self._usage.batch() as used, self._database.transaction() as sql:
                        usage.write(sql, used)
                    self._flush()
            finally:
                self._database.close()
                self._lock.release()

    def _flush(self) -> None:
        if not self._index.is_saved:
            self._index.save(
                self.folder,
                store_id=self._database.store_id,
                last_id=version(self._database.connection).last_id,
            )
        self._database.checkpoint()

    def _open_index(self) -> VectorIndex:
        """The index from its file, brought to what the database holds."""
        with self._database.transaction() as sql:
            rows.delete(sql, rows.expired(sql, self._clock()))
            live = rows.all_ids(sql)
            index = VectorIndex.load(
                self.folder,
                dimensions=self.dimensions,
                store_id=self._database.store_id,
                last_id=version(sql).last_id,
            )
            known = index.ids
            index.remove(np.setdiff1d(known, live, assume_unique=True))
            missing = np.setdiff1d(live, known, assume_unique=True)
            try:
                for ids, matrix in rows.vectors(sql, missing, self.dimensions):
                    index.add(ids, matrix)
            except ValueError as problem:
                raise damaged(self._database.path, str(problem)) from problem
        if len(missing):
            log.info("%s: %d vectors added from the database", INDEX_FILE, len(missing))
        return index

    # --- searching, under the lock ---

    @contextmanager
    def _use(self) -> Generator[float]:
        """Hold the lock and turn what the disk raises into our errors; gives the time."""
        with self._mutex, storage_errors(self._database.path):
            if not self._is_open:
                raise SyscallError("not_available", "the memory store is closed")
            yield self._clock()

    def _nearest(
        self, sql: sqlite3.Connection, unit: Matrix, chosen: Filter, k: int
    ) -> list[tuple[int, float]]:
        return self._index.search(unit, k, rows.select_ids(sql, chosen))

    def _unit_vectors(self, vectors: Sequence[Sequence[float]], *, field: str) -> Matrix:
        try:
            return unit_vectors(vectors, self.dimensions)
        except ValueError as problem:
            raise SyscallError("invalid", str(problem), field=field) from problem
