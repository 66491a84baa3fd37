"""The memory store's database file: opening it, one connection that writes and some that read.

Owns the SQLite file `notes.db`. Refuses to know what notes mean (`notes.py`) and vectors' search
(`vectors.py`).

Any number of processes and threads may have it open: SQLite's write-ahead log lets readers go on
beside a writer, and writers wait for each other, `BUSY_TIMEOUT_S` at most. `transaction` is not
thread-safe: one thread at a time uses it (`commits.py`). `reading` is.

Durability: synchronous=FULL, so a commit returns after its fsync. Deleted content is overwritten
with zeros. A file that was cut short, is no database, or is of a newer version is refused before
anything is written.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import uuid
from collections import Counter
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Lock

from llmos.memory.changes import ReadingConnection
from llmos.memory.damage import (
    APPLICATION_ID,
    refuse_cut_short,
    refuse_foreign,
    refuse_leftovers,
    storage_errors,
)
from llmos.memory.folder import (
    DATABASE_FILE,
    OPEN_LOCK_FILE,
    WAL_FILE,
    FileLock,
    replace_durably,
)
from llmos.memory.schema import SCHEMA, SCHEMA_VERSION, migrate
from llmos.syscalls.errors import ConfigError

OLDEST_SQLITE = (3, 37, 0)  # STRICT tables
OPTION_SINCE = (3, 42, 0)  # FTS5's own secure-delete
BUSY_TIMEOUT_S = 10.0
_CACHE_KIB = 65_536  # for the connection that writes: indexes of a million notes
# Of a new store. A page of 4 KB, SQLite's choice, takes two vectors of 384 numbers; of 8 KB, five.
_PAGE_BYTES = 8192
# Commits change the same pages again and again, and a checkpoint copies each once: one for every
# 32 MB of the log writes less than one for every 4 MB, which is SQLite's choice.
_CHECKPOINT_PAGES = 4096
_READ_MAP_BYTES = 1 << 34  # SQLite maps 2 GB at most; what is beyond goes through the cache
_READ_CACHE_KIB = 8_192  # of each connection that reads

# How often this process has each file open. POSIX locks belong to a process: were the file opened
# and closed beside SQLite, SQLite's locks would be gone.
# Source: https://www.sqlite.org/howtocorrupt.html section 2.2.
_opened: Counter[Path] = Counter()
_opened_lock = Lock()


class Database:
    """An open `notes.db` in `folder`, created if there is none.

    Raises: SyscallError("storage") for a damaged file or a disk that refuses; ConfigError for a
    file of a newer version, of another program, or with vectors of other `dimensions`.
    """

    def __init__(self, folder: Path, *, dimensions: int, model: str | None = None) -> None:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise ConfigError(
                "sqlite", f"{sqlite3.sqlite_version} is too old; the memory store needs 3.37"
            )
        self.path = folder.resolve() / DATABASE_FILE
        self.busy_timeout_s = BUSY_TIMEOUT_S
        self._idle: list[sqlite3.Connection] = []
        self._is_open = True
        with storage_errors(self.path):
            if os.statvfs(folder).f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            if not self.path.exists():
                self._make(dimensions, model)
            with _opened_lock:
                if not _opened[self.path]:
                    refuse_cut_short(self.path)
                self.connection = _connect(self.path)
                _opened[self.path] += 1
            try:
                self._open(dimensions)
            except BaseException:
                self.close()
                raise

    def _open(self, dimensions: int) -> None:
        is_old = refuse_foreign(self.path) < SCHEMA_VERSION
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self.connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        if is_old:
            self._migrate()
        if sqlite3.sqlite_version_info >= OPTION_SINCE:
            self.connection.execute(
                "INSERT INTO notes_text (notes_text, rank) VALUES ('secure-delete', 1)"
            )
        self.store_id = self._identify(dimensions)

    def _make(self, dimensions: int, model: str | None) -> None:
        lock = FileLock.wait(self.path.with_name(OPEN_LOCK_FILE))
        try:
            if not self.path.exists():  # nobody else has made it meanwhile
                refuse_leftovers(self.path)
                _create(self.path, dimensions, model)
        finally:
            lock.release()

    def _migrate(self) -> None:
        # A kernel that knows only the older format holds this lock as long as it runs.
        lock = FileLock.wait(self.path.with_name(OPEN_LOCK_FILE))
        try:
            migrate(self.connection)
        finally:
            lock.release()

    def _identify(self, dimensions: int) -> str:
        store_id, stored = self.connection.execute(
            "SELECT store_id, dimensions FROM store"
        ).fetchone()
        if stored != dimensions:
            raise ConfigError(
                "dimensions",
                f"the memory store {self.path} holds vectors of {stored} dimensions and the "
                f"embedding model gives {dimensions}; use the model that it was made with, or "
                "another folder",
            )
        return store_id

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """Everything in the block or nothing; durable once the block is left."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.connection
            self.connection.execute("COMMIT")
        except BaseException:
            # A full disk makes SQLite roll back by itself.
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    @contextmanager
    def reading(self) -> Generator[sqlite3.Connection]:
        """A connection that only reads, for this block alone; it waits for no writer."""
        connection = self.borrow()
        try:
            yield connection
        finally:
            self.give_back(connection)

    def borrow(self) -> sqlite3.Connection:
        """A connection that only reads, the caller's alone until `give_back`."""
        try:
            return self._idle.pop()  # atomic, unlike a look before it
        except IndexError:
            return self._reader()

    def give_back(self, connection: sqlite3.Connection) -> None:
        """Take back what was borrowed."""
        if self._is_open:
            self._idle.append(connection)
        else:
            connection.close()

    def another(self) -> sqlite3.Connection:
        """A connection of the caller's own, who closes it."""
        return _connect(self.path, timeout_s=self.busy_timeout_s)

    def _reader(self) -> sqlite3.Connection:
        connection = _connect(self.path, kind=ReadingConnection)
        connection.execute("PRAGMA query_only = ON")
        connection.execute(f"PRAGMA mmap_size = {_READ_MAP_BYTES}")
        connection.execute(f"PRAGMA cache_size = -{_READ_CACHE_KIB}")
        return connection

    def checkpoint(self) -> None:
        """Move what the write-ahead log holds into the database file, waiting for nobody."""
        with self.reading() as sql:  # the other connection may be in a transaction
            sql.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def size_bytes(self) -> int:
        """Bytes on disk, the write-ahead log included."""
        files = (self.path, self.path.with_name(WAL_FILE))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Close every connection that nobody uses now; the last one of all makes a checkpoint."""
        if not self._is_open:
            return
        self._is_open = False
        while self._idle:
            self._idle.pop().close()
        self.connection.close()
        with _opened_lock:
            _opened[self.path] -= 1


def _connect(
    path: Path,
    mode: str = "rw",
    *,
    timeout_s: float = BUSY_TIMEOUT_S,
    kind: type[sqlite3.Connection] = sqlite3.Connection,
) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=timeout_s,
        factory=kind,
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path, dimensions: int, model: str | None) -> None:
    """Build the database under another name and move it into place: it exists whole or not.

    In rollback-journal mode, where a commit is in the file itself and nothing waits for the close.
    """
    building = path.with_name(path.name + ".new")
    building.unlink(missing_ok=True)
    building.with_name(building.name + "-journal").unlink(missing_ok=True)
    with closing(_connect(building, "rwc")) as connection:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")
        connection.execute(
            "INSERT INTO store (store_id, dimensions, embedding_model) VALUES (?, ?, ?)",
            (uuid.uuid4().hex, dimensions, model),
        )
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    replace_durably(building, path)
