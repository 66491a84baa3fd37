"""The database file: what is refused, and that a refusal leaves it as it was."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from llmos.memory.database import Database
from llmos.memory.folder import FileLock
from llmos.memory.store import Store
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import ConfigError, KernelPanic, SyscallError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed store with some notes in it."""
    store = Store(tmp_path, dimensions=4)
    notes = [Note(text=f"note {number} " * 50) for number in range(100)]
    store.remember("a", notes, [[1.0, number, 0.0, 0.0] for number in range(100)])
    store.close()
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("notes.db", "vectors.faiss")}


def refused(folder: Path, dimensions: int = 4) -> str:
    """The message with which opening is refused, the files untouched."""
    before = contents(folder)
    with pytest.raises((SyscallError, ConfigError)) as caught:
        Store(folder, dimensions=dimensions)
    assert contents(folder) == before
    return str(caught.value)


def test_a_refused_open_lets_the_next_one_in(folder: Path) -> None:
    refused(folder, dimensions=5)
    Store(folder, dimensions=4).close()


def test_a_lock_is_one_holders_and_released_once(tmp_path: Path) -> None:
    lock = FileLock.take(tmp_path / "lock")
    assert lock is not None
    assert FileLock.take(tmp_path / "lock") is None
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        FileLock.wait(tmp_path / "lock", wait_s=0.0)
    lock.release()
    lock.release()
    FileLock.wait(tmp_path / "lock", wait_s=0.0).release()


def test_a_store_of_a_newer_version_is_refused_untouched(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "notes.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "newer llmos (format 99" in refused(folder)


def test_another_programs_database_is_refused_untouched(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "notes.db")) as connection:
        connection.execute("PRAGMA application_id = 1")
    assert "not a memory store" in refused(folder)


def test_vectors_of_another_model_are_refused(folder: Path) -> None:
    assert "4 dimensions and the embedding model gives 8" in refused(folder, dimensions=8)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.9999])
def test_a_database_cut_short_is_refused_untouched(folder: Path, share: float) -> None:
    path = folder / "notes.db"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = refused(folder)
    assert message.startswith("storage:") and str(path) in message and "backup" in message


def test_a_lost_database_is_not_silently_begun_anew(folder: Path) -> None:
    (folder / "notes.db").unlink()
    with pytest.raises(SyscallError, match=r"missing, but its vectors\.faiss is here"):
        Store(folder, dimensions=4)


def test_a_damaged_page_is_reported_when_it_is_met(folder: Path) -> None:
    path = folder / "notes.db"
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    message = refused(folder)
    assert "damaged" in message and "backup" in message


def test_a_missing_vector_is_damage(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "notes.db")) as connection, connection:
        connection.execute("DELETE FROM vectors WHERE note = 7")
    (folder / "vectors.faiss").unlink()
    with pytest.raises(SyscallError, match="no whole vector"):
        Store(folder, dimensions=4)


def test_a_half_made_database_of_a_killed_kernel_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "notes.db.new").write_text("half")
    Store(tmp_path, dimensions=4).close()
    assert not (tmp_path / "notes.db.new").exists()


def test_a_database_locked_by_another_program_is_busy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(folder, dimensions=4)
    store._database.connection.execute("PRAGMA busy_timeout = 0")
    with closing(sqlite3.connect(folder / "notes.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SyscallError) as caught:
            store.remember("a", [Note(text="x")], [[1.0, 0.0, 0.0, 0.0]])
        assert caught.value.code == "busy" and caught.value.is_retryable
        other.execute("ROLLBACK")
    store.remember("a", [Note(text="x")], [[1.0, 0.0, 0.0, 0.0]])
    store.close()


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SyscallError) as caught:
        Store(tmp_path / "file" / "memory", dimensions=4)
    assert caught.value.code == "storage"
    assert caught.value.fields["path"] == str(tmp_path / "file" / "memory")


def test_an_exception_in_a_transaction_undoes_it(tmp_path: Path) -> None:
    database = Database(tmp_path, dimensions=4)
    with pytest.raises(KernelPanic), database.transaction() as sql:
        sql.execute("UPDATE store SET dimensions = 5")
        raise KernelPanic("stop")
    with database.transaction() as sql:
        assert sql.execute("SELECT dimensions FROM store").fetchone() == (4,)
    database.close()
