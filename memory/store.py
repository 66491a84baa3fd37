"""The long-term store: what processes remember, found again by meaning and by words.

One crash-safe unit of two parts: the SQLite database is the truth (`database.py`, `notes.py`), the
FAISS index is derived from it and follows it (`nearest.py`). A call that has returned is on the
disk; a call that raised has changed nothing. Refuses to know who may use which namespace (the
kernel's gate) and how text becomes vectors (the embedding driver).

Every method blocks and may be called from any thread, and any number of processes may have the
store open: each sees what the others have committed. Readers wait for nobody; writers that come
together share one commit (`commits.py`).

Not protected: BM25 weighs words by how rare they are in the whole store, so scores (not contents)
depend on other namespaces.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Lock
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from llmos.memory import notes as rows
from llmos.memory import usage
from llmos.memory.changes import trim
from llmos.memory.commits import GroupCommit
from llmos.memory.conditions import parse, refuse_unknown
from llmos.memory.damage import explained, storage_errors
from llmos.memory.database import Database
from llmos.memory.decay import DEFAULT as DECAY
from llmos.memory.decay import Decay, faded_ids, left_behind_ids
from llmos.memory.filters import Filter
from llmos.memory.fresh import Digests, settle_all
from llmos.memory.ingest.manifest import drop_if_forgotten
from llmos.memory.knowledge import related
from llmos.memory.later import Later
from llmos.memory.nearest import NearestNotes
from llmos.memory.query import Query
from llmos.memory.reader import Reader
from llmos.memory.search import search
from llmos.memory.upkeep import Report, backup, check, erase_traces
from llmos.memory.usage import Usage
from llmos.memory.vector_model import check_model
from llmos.memory.vectors import unit_vector, unit_vectors
from llmos.memory.words import FreshWords
from llmos.memory.writing import Entered, enter, nearly_there
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Facts, Forgotten, Hits, MemoryInfo, Remembered
from llmos.syscalls.values import JsonObject

if TYPE_CHECKING:
    from llmos.memory.vectors import Matrix

R = TypeVar("R")

log = logging.getLogger(__name__)


class Store:
    """The store in `folder`, opened or created, for vectors of `dimensions`.

    `model` names the embedding model that a new store is for.
    Raises: ConfigError when it was written by a newer version or for other dimensions;
    SyscallError("storage") when the disk refuses or the database is damaged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dimensions: int,
        model: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self._clock = clock
        self._usage = Usage()
        self._digests = Digests()
        self._fresh_words = FreshWords()
        self._later = Later("memory-upkeep", self._catch_up_later)
        self._closing = Lock()
        self._guard = Lock()  # of the next three
        self._users = 0  # calls under way, which the files are not closed under
        self._users_changed = Condition(self._guard)
        self._is_open = False
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._database = Database(folder, dimensions=dimensions, model=model)
        try:
            self._commits = GroupCommit(self._database, undone=self._digests.clear)
            self._nearest = NearestNotes(self._database, folder)
        except BaseException:
            self._database.close()
            raise
        self._is_open = True

    @property
    def dimensions(self) -> int:
        """How many numbers each vector has."""
        return self._nearest.dimensions

    # --- the calls ---

    def remember(
        self,
        namespace: str,
        notes: Sequence[Note],
        vectors: Sequence[Sequence[float]],
        *,
        owner: str | None = None,
        merge_above: float | None = None,
        model: str | None = None,
    ) -> Remembered:
        """Store notes with one vector each; all or none.

        `ids` are in the notes' order; `writing.py` says when one is there already and gives its old
        id. `owner` and `merge_above` are as in `calls.Remember`. `model` is the text of the model
        that made the vectors (None: not checked).
        Raises: SyscallError("invalid") naming the field; SyscallError("storage"); ("busy") when the
        store's model is another.
        """
        if len(notes) != len(vectors):
            raise SyscallError(
                "invalid", f"{len(notes)} notes but {len(vectors)} vectors", field="vectors"
            )
        matrix = self._unit_vectors(vectors, field="vectors")
        stored = matrix.astype("<f4", copy=False)
        prepared = [rows.prepare(namespace, note) for note in notes]
        with self.reading() as reader:
            now = reader.now
            near = nearly_there(reader, namespace, notes, matrix, merge_above=merge_above)

        def write(sql: sqlite3.Connection) -> list[Entered]:
            check_model(sql, model)
            rows.delete(sql, rows.expired(sql, now))
            blobs = [row.tobytes() for row in stored]
            return enter(
                sql, namespace, prepared, blobs, now, digests=self._digests, owner=owner, near=near
            )

        entered = self._commit(write)
        if self._nearest.is_far_behind(max((one.note for one in entered), default=0)):
            self._later.ask()
        return Remembered(
            ids=tuple(one.note for one in entered),
            duplicates=sum(not one.is_new for one in entered),
            superseded=tuple(note for one in entered for note in one.superseded),
        )

    def retrieve(self, query: Query) -> Hits:
        """The k best live notes for a query; `search.py` says how they are ranked.

        Raises: SyscallError("invalid") naming the field; SyscallError("storage"); ("busy") when the
        vector was another model's.
        """
        unit = None
        if query.mode != "lexical":
            if query.vector is None:
                raise SyscallError("invalid", f"{query.mode} search needs a vector", field="vector")
            unit = self._unit_vectors([query.vector], field="vector")
        with self.reading() as reader:
            found = search(reader, query, unit, reader.now)
            check_model(reader.sql, query.model)
        self._usage.add([hit.id for hit in found.hits], reader.now)
        if self._usage.is_full:
            self._later.ask()
        return found

    @contextmanager
    def reading(self) -> Generator[Reader]:
        """The store for one thread to read from in this block. Raises: as `retrieve`."""
        with self._use() as now:
            sql = self._database.borrow()
            try:
                yield Reader(
                    sql,
                    nearest=self._nearest.search,
                    fresh=self._fresh_words,
                    dimensions=self.dimensions,
                    now=now,
                )
            finally:
                self._database.give_back(sql)

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

        Of a file that no note is left of, nothing is known any more.

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
        chosen = Filter(
            spaces,
            self._clock(),
            where or {},
            source,
            list(ids) or None,
            owner=owner,
            with_history=True,
        )

        def write(sql: sqlite3.Connection) -> int:
            gone = rows.select_ids(sql, chosen)
            if not len(gone):
                refuse_unknown(sql, parse(chosen.where), spaces)
            files = rows.sources(sql, gone)
            rows.delete(sql, gone)
            drop_if_forgotten(sql, files)
            return len(gone)

        return Forgotten(count=self._write(write))

    def decay(self, how: Decay = DECAY, *, namespaces: Sequence[str] | None = None) -> Forgotten:
        """Delete what has faded in some namespaces (None: in all); `decay.py` says what fades.

        Raises: SyscallError("storage").
        """
        self._write_usage()
        now = self._clock()

        def write(sql: sqlite3.Connection) -> int:
            gone = np.array(faded_ids(sql, now, how, namespaces=namespaces), dtype=np.int64)
            rows.delete(sql, gone)
            return len(gone)

        return Forgotten(count=self._write(write))

    def forget_left_behind(self, after_s: float) -> Forgotten:
        """Delete what is in processes' own namespaces, `after_s` seconds after the newest of each.

        Raises: SyscallError("storage").
        """
        before = self._clock() - after_s
        with self.reading() as reader:
            if not left_behind_ids(reader.sql, before):
                return Forgotten(count=0)

        def write(sql: sqlite3.Connection) -> int:
            gone = np.array(left_behind_ids(sql, before), dtype=np.int64)
            rows.delete(sql, gone)
            return len(gone)

        return Forgotten(count=self._write(write))

    def _write_usage(self) -> None:
        with self._usage.batch() as used:
            if used:
                self.record(lambda sql: usage.write(sql, used))

    def record(self, write: Callable[[sqlite3.Connection], None]) -> None:
        """Run `write` in a transaction; it may change nothing that a search finds."""
        with self._use():
            self._commits.run(write)

    def stat(self, namespaces: Sequence[str] | None = None) -> MemoryInfo:
        """What the store holds in some namespaces (None: all), and its sizes as a whole."""
        with self.reading() as reader:
            counts = rows.count_by_namespace(reader.sql, namespaces, reader.now)
            self._nearest.catch_up(reader.sql)
            index = self._nearest.index
            return MemoryInfo(
                items=sum(count.items for count in counts),
                dimensions=self.dimensions,
                index=index.kind,
                index_bytes=index.size_bytes,
                index_recall=index.recall.share,
                recall_sample=index.recall.searches,
                is_building=self._nearest.is_building,
                database_bytes=self._database.size_bytes(),
                namespaces=counts,
            )

    def namespaces(self) -> list[str]:
        """Every namespace that has a note. Raises: SyscallError("storage")."""
        with self.reading() as reader:
            return rows.namespaces(reader.sql)

    def index_bytes(self) -> int:
        """Resident bytes of the index, for the memory ledger; never waits."""
        return self._nearest.index.size_bytes

    # --- the files ---

    def build(self) -> None:
        """Build the vector index that is best for what is there now, with all cores.

        Without this call it is built in the background when there is need.
        Raises: SyscallError("busy") when another process is building it.
        """
        with self.reading() as reader:
            self._nearest.catch_up(reader.sql)
            self._nearest.build()

    def check(self) -> Report:
        """Read all of the store and report what does not fit together. Raises: as `retrieve`."""
        with self.reading() as reader:
            index = None
            try:
                self._nearest.catch_up(reader.sql)
                index = self._nearest.index
            except SyscallError as problem:  # a damaged vector, which the report names
                log.warning("the vector index is not checked: %s", problem)
            return check(self._database, index)

    def backup(self, folder: Path) -> None:
        """Copy the store into a new folder, consistently, while reads and writes go on.

        Raises: SyscallError("invalid") when a store is there already; SyscallError("storage").
        """
        with self._use(), storage_errors(folder):
            backup(self._database, folder)

    def vacuum(self) -> None:
        """Leave nothing of forgotten notes in the store's files, and give free space back.

        Raises: SyscallError("busy") while somebody reads; SyscallError("storage").
        """
        with self.reading() as reader:
            state = self._nearest.catch_up(reader.sql)
            saved = self._nearest.save()
        if saved is None or saved.seq < state.seq:  # the file may hold vectors of what is gone
            raise SyscallError(
                "busy", "another process writes the store's index; try again", is_retryable=True
            )
        with self._use():
            erase_traces(self._database)

    def flush(self) -> None:
        """Save the index, enter what is fresh, and fold the write-ahead log into the database.

        Nothing acknowledged depends on it; it makes the next open fast.
        """
        self._write_usage()
        self.record(settle_all)
        with self.reading() as reader:
            self._nearest.catch_up(reader.sql)
            self._save_index()
            self._database.checkpoint()

    def close(self) -> None:
        """Flush and close the files when all calls under way are over; a second call does nothing.

        Also when the flush fails, everything is closed.
        """
        with self._closing:
            if not self._is_open:
                return
            self._later.stop()
            self._nearest.stop()
            try:
                self._write_usage()
                with self.reading() as reader:
                    self._nearest.catch_up(reader.sql)
                    if self._nearest.is_stale:
                        self._save_index()
                    self._database.checkpoint()
            finally:
                with self._users_changed:
                    self._is_open = False
                    self._users_changed.wait_for(lambda: self._users == 0)
                self._database.close()
                self._fresh_words.close()

    def _save_index(self) -> None:
        saved = self._nearest.save()
        if saved is not None:
            seen = saved.seq
            self._commits.run(lambda sql: trim(sql, seen))

    # --- inside ---

    def _write(self, write: Callable[[sqlite3.Connection], R]) -> R:
        """What `write` returns, when it is on the disk and the index has come up to it."""
        value = self._commit(write)
        self._follow()
        return value

    def _commit(self, write: Callable[[sqlite3.Connection], R]) -> R:
        """What `write` returns, when it is on the disk."""
        with self._use():
            return self._commits.run(write)

    def _follow(self) -> None:
        """Bring the index up to what was written, so that the next search need not; what fails in
        that, the next search meets."""
        with self._use(), self._database.reading() as sql:
            try:
                self._nearest.catch_up(sql)
            except (SyscallError, MemoryError, sqlite3.Error) as problem:
                log.warning("the vector index is behind: %s", problem)

    def _catch_up_later(self) -> None:
        """What calls leave to the background: the index, and uses that wait to be written."""
        try:
            self._follow()
            if self._usage.is_full:
                self._write_usage()
        except SyscallError as problem:  # it is tried again, at the latest when the store closes
            log.warning("the memory store's upkeep has to wait: %s", problem)

    @contextmanager
    def _use(self) -> Generator[float]:
        """Keep the store open and turn what the disk raises into our errors; gives the time."""
        with self._guard:
            if not self._is_open:
                raise SyscallError("not_available", "the memory store is closed")
            self._users += 1
        try:
            yield self._clock()
        except (sqlite3.Error, OSError) as problem:
            raise explained(self._database.path, problem) from problem
        finally:
            with self._guard:
                self._users -= 1
                if not self._is_open:  # somebody waits for the last one
                    self._users_changed.notify_all()

    def _unit_vectors(self, vectors: Sequence[Sequence[float]], *, field: str) -> Matrix:
        if len(vectors) and len(vectors[0]) != self.dimensions:  # the model may have been changed
            with self.reading() as reader:
                self._nearest.catch_up(reader.sql)
        try:
            if len(vectors) == 1:
                return unit_vector(vectors[0], self.dimensions)
            return unit_vectors(vectors, self.dimensions)
        except ValueError as problem:
            raise SyscallError("invalid", str(problem), field=field) from problem
