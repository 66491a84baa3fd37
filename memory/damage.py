"""What the memory store refuses to open, and what it says when SQLite or the disk refuses.

Every error names the file and the remedy. Nothing here changes a file.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from llmos.memory.folder import INDEX_FILE, WAL_FILE
from llmos.memory.schema import SCHEMA_VERSION
from llmos.syscalls.errors import ConfigError, KernelPanic, SyscallError

APPLICATION_ID = 0x6C6C6D6F  # "llmo" in the SQLite header: whose file this is


@contextmanager
def storage_errors(path: Path) -> Generator[None]:
    """Turn what SQLite and the disk raise into a `SyscallError` with the path and the remedy."""
    try:
        yield
    except (sqlite3.Error, OSError) as problem:
        raise explained(path, problem) from problem


def damaged(path: Path, what: str) -> SyscallError:
    """The error for a file that cannot be trusted."""
    return SyscallError(
        "storage",
        f"the memory database {path} is damaged ({what}); restore it from a backup, or move its "
        "folder away to begin with an empty memory",
        path=str(path),
    )


def explained(path: Path, problem: sqlite3.Error | OSError) -> Exception:
    """What SQLite or the disk raised, as the error that a caller of the store gets."""
    if isinstance(problem, OSError):
        return SyscallError(
            "storage",
            f"cannot use {path}: {problem.strerror}; check the folder's permissions and free "
            "space, or choose another folder",
            path=str(path),
        )
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


def refuse_leftovers(path: Path) -> None:
    """Refuse to begin anew beside a lost database's files: its log would be replayed into ours."""
    for name in (WAL_FILE, INDEX_FILE):
        if path.with_name(name).exists():
            raise damaged(path, f"it is missing, but its {name} is here")


def refuse_cut_short(path: Path) -> None:
    """Refuse a file that SQLite would take for a new one, or whose missing end it might not see."""
    # Another process may fold its log into the file between two looks; damage stays.
    problems = [_cut_short(path) for _ in range(3)]
    if all(problems):
        raise damaged(path, str(problems[-1]))


def _cut_short(path: Path) -> str | None:
    """What is missing, if anything. Source: https://www.sqlite.org/fileformat2.html section 1.3."""
    with path.open("rb") as file:
        header = file.read(100)
    size_bytes = path.stat().st_size  # after the header: a file only grows while it is in use
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        return "its header is missing"
    wal = path.with_name(WAL_FILE)
    if wal.exists() and wal.stat().st_size > 0:
        return None  # pages may be in the log only; SQLite recovers or refuses
    (page_bytes,) = struct.unpack_from(">H", header, 16)
    change_counter, pages = struct.unpack_from(">II", header, 24)
    (valid_for,) = struct.unpack_from(">I", header, 92)
    expected_bytes = pages * (65536 if page_bytes == 1 else page_bytes)
    if change_counter == valid_for and size_bytes < expected_bytes:
        return f"{size_bytes} of its {expected_bytes} bytes are left"
    return None


def refuse_foreign(path: Path) -> int:
    """The version of a database. Refuses another program's and a newer one, opened only to read."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
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
    return version
