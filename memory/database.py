"""The memory store's database file: schema, opening, transactions, and errors that say what to do.

Owns the SQLite file `notes.db`. Refuses to know what notes mean (`notes.py`) and vectors' search
(`vectors.py`). One connection; the store's lock serialises its use.

Durability: WAL with synchronous=FULL, so a commit returns after its fsync. A file that was cut
short, is no database, or is of a newer version is refused before anything is written.
"""

from __future__ import annotations

import sqlite3
import struct
import uuid
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from llmos.memory.folder import DATABASE_FILE, INDEX_FILE, WAL_FILE, replace_durably
from llmos.syscalls.errors import ConfigError, KernelPanic, SyscallError

SCHEMA_VERSION = 1
APPLICATION_ID = 0x6C6C6D6F  # "llmo" in the SQLite header: whose file this is
OLDEST_SQLITE = (3, 37, 0)  # STRICT tables

# Notes never change: they are inserted and deleted, and AUTOINCREMENT never gives an id twice. So
# an index that is behind can be caught up by comparing ids, without a log of changes.
# `facts` holds each metadata entry as canonical JSON, which makes equality exact and indexed.
# `notes_text` is the full-text index over `notes.text`; triggers keep it in the same transaction.
SCHEMA = """
CREATE TABLE store (store_id TEXT NOT NULL, dimensions INTEGER NOT NULL) STRICT;
CREATE TABLE notes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL,
    source TEXT,
    position INTEGER,
    created_at REAL NOT NULL,
    expires_at REAL,
    digest BLOB NOT NULL UNIQUE
) STRICT;
CREATE INDEX notes_by_namespace ON notes (namespace, expires_at);
CREATE INDEX notes_by_source ON notes (namespace, source);
CREATE INDEX notes_by_expiry ON notes (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE vectors (
    note INTEGER PRIMARY KEY REFERENCES notes ON DELETE CASCADE,
    vector BLOB NOT NULL
) STRICT;
CREATE TABLE facts (
    note INTEGER NOT NULL REFERENCES notes ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (note, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX facts_by_value ON facts (key, value, note);
CREATE VIRTUAL TABLE notes_text USING fts5 (
    text, content = 'notes', content_rowid = 'id',
    tokenize = 'porter unicode61 remove_diacritics 2'
);
CREATE TRIGGER notes_text_insert AFTER INSERT ON notes BEGIN
    INSERT INTO notes_text (rowid, text) VALUES (new.id, new.text);
END;
CREATE TRIGGER notes_text_delete AFTER DELETE ON notes BEGIN
    INSERT INTO notes_text (notes_text, rowid, text) VALUES ('delete', old.id, old.text);
END;
"""


class Database:
    """An open `notes.db` in `folder`, created if there is none.

    Raises: SyscallError("storage") for a damaged file or a disk that refuses; ConfigError for a
    file of a newer version, of another program, or with vectors of other `dimensions`.
    """

    def __init__(self, folder: Path, *, dimensions: int) -> None:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise ConfigError(
                "sqlite", f"{sqlite3.sqlite_version} is too old; the memory store needs 3.37"
            )
        self.path = folder / DATABASE_FILE
        with storage_errors(self.path):
            if self.path.exists():
                _refuse_cut_short(self.path)
                _refuse_foreign(self.path)
            else:
                _refuse_leftovers(self.path)
                _create(self.path, dimensions)
            self.connection = _connect(self.path)
            try:
                self.connection.execute("PRAGMA journal_mode = WAL")
                self.store_id = self._identify(dimensions)
            except BaseException:
                self.close()
                raise

    def _identify(self, dimensions: int) -> str:
        store_id, stored = self.connection.execute("SELECT * FROM store").fetchone()
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

    def checkpoint(self) -> None:
        """Move what the write-ahead log holds into the database file, waiting for nobody."""
        self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def size_bytes(self) -> int:
        """Bytes on disk, the write-ahead log included."""
        files = (self.path, self.path.with_name(WAL_FILE))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Close the file; SQLite checkpoints it."""
        self.connection.close()


@contextmanager
def storage_errors(path: Path) -> Generator[None]:
    """Turn what SQLite and the disk raise into a `SyscallError` with the path and the remedy."""
    try:
        yield
    except sqlite3.Error as problem:
        raise _explain(path, problem) from problem
    except OSError as problem:
        raise SyscallError(
            "storage",
            f"cannot use {path}: {problem.strerror}; check the folder's permissions and free "
            "space, or choose another folder",
            path=str(path),
        ) from problem


def damaged(path: Path, what: str) -> SyscallError:
    """The error for a file that cannot be trusted."""
    return SyscallError(
        "storage",
        f"the memory database {path} is damaged ({what}); restore it from a backup, or move its "
        "folder away to begin with an empty memory",
        path=str(path),
    )


def _explain(path: Path, problem: sqlite3.Error) -> Exception:
    extended = getattr(problem, "sqlite_errorcode", None)
    match None if extended is None else extended & 0xFF:
        case sqlite3.SQLITE_FULL:
            return SyscallError(
                "storage",
                f"the disk that holds {path} is full, nothing was changed; free some space and "
                "try again",
                is_retryable=True,
                path=str(path),
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return SyscallError(
                "storage",
                f"{path} cannot be opened for writing ({problem}); give this user permission to "
                "write the file and its folder, or choose another folder",
                path=str(path),
            )
        case sqlite3.SQLITE_IOERR:
            return SyscallError(
                "storage",
                f"the disk refused to read or write {path} ({problem}), nothing was changed; check "
                "its free space, quota and health",
                path=str(path),
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return damaged(path, str(problem))
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return SyscallError(
                "busy",
                f"another program holds {path} locked; close it and try again",
                is_retryable=True,
                path=str(path),
            )
        case sqlite3.SQLITE_TOOBIG:
            return SyscallError("invalid", "a note is larger than SQLite can hold", field="notes")
        case _:
            return KernelPanic(f"the memory store misused SQLite: {problem}")


def _connect(path: Path, mode: str = "rw") -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=5.0,
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path, dimensions: int) -> None:
    """Build the database under another name and move it into place: it exists whole or not.

    In rollback-journal mode, where a commit is in the file itself and nothing waits for the close.
    """
    building = path.with_name(path.name + ".new")
    building.unlink(missing_ok=True)
    building.with_name(building.name + "-journal").unlink(missing_ok=True)
    with closing(_connect(building, "rwc")) as connection:
        connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")
        connection.execute("INSERT INTO store VALUES (?, ?)", (uuid.uuid4().hex, dimensions))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    replace_durably(building, path)


def _refuse_leftovers(path: Path) -> None:
    """Refuse to begin anew beside a lost database's files: its log would be replayed into ours."""
    for name in (WAL_FILE, INDEX_FILE):
        if path.with_name(name).exists():
            raise damaged(path, f"it is missing, but its {name} is here")


def _refuse_cut_short(path: Path) -> None:
    """Refuse a file that SQLite would take for a new one, or whose missing end it might not see.

    Source: https://www.sqlite.org/fileformat2.html section 1.3.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise damaged(path, "its header is missing")
    wal = path.with_name(WAL_FILE)
    if wal.exists() and wal.stat().st_size > 0:
        return  # pages may be in the log only; SQLite recovers or refuses
    (page_bytes,) = struct.unpack_from(">H", header, 16)
    change_counter, pages = struct.unpack_from(">II", header, 24)
    (valid_for,) = struct.unpack_from(">I", header, 92)
    expected_bytes = pages * (65536 if page_bytes == 1 else page_bytes)
    if change_counter == valid_for and size_bytes < expected_bytes:
        raise damaged(path, f"{size_bytes} of its {expected_bytes} bytes are left")


def _refuse_foreign(path: Path) -> None:
    """Refuse another program's database and a newer version, opened for reading only."""
    with closing(_connect(path, "ro")) as connection:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise ConfigError("folder", f"{path} is not a memory store of llmos; choose another folder")
    if version > SCHEMA_VERSION:
        raise ConfigError(
            "folder",
            f"{path} was written by a newer llmos (format {version}, this one reads up to "
            f"{SCHEMA_VERSION}); update llmos or choose another folder",
        )
