"""Files of saved KV: whole or not there, and never trusted unchecked."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from llmos.memory.kv_folder import KVFolder
from llmos.memory.kv_owner import Owner

OWNER = Owner("legal", "user:bob", 3)
TOKENS = (1, 2, 3, 49_151)
STATE = bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path: Path) -> KVFolder:
    return KVFolder(tmp_path / "kv" / "abc")


def test_what_is_written_is_found_by_the_next_kernel(folder: KVFolder, tmp_path: Path) -> None:
    written = folder.write(OWNER, TOKENS, STATE)
    (found,) = KVFolder(tmp_path / "kv" / "abc").scan()
    assert found == written
    assert (found.owner, found.tokens) == (OWNER, TOKENS)
    assert found.file_bytes == found.path.stat().st_size
    assert folder.read(found) == STATE


def test_only_its_owner_can_read_a_file(folder: KVFolder) -> None:
    written = folder.write(OWNER, TOKENS, STATE)
    assert written.path.stat().st_mode & 0o077 == 0
    assert written.path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("position", [0, 9, 30, 200])
def test_a_damaged_head_is_deleted_with_a_warning(
    folder: KVFolder, position: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder.write(OWNER, TOKENS, STATE).path
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert folder.scan() == []
    assert "deleted" in caplog.text
    assert not path.exists()


@pytest.mark.parametrize("size", [0, 10, 100, 5000])
def test_a_cut_file_is_deleted(folder: KVFolder, size: int) -> None:
    path = folder.write(OWNER, TOKENS, STATE).path
    path.write_bytes(path.read_bytes()[:size])
    assert folder.scan() == []
    assert not path.exists()


def test_a_damaged_state_is_found_when_it_is_read(folder: KVFolder) -> None:
    written = folder.write(OWNER, TOKENS, STATE)
    data = bytearray(written.path.read_bytes())
    data[-1] ^= 1
    written.path.write_bytes(data)
    (found,) = folder.scan()
    assert folder.read(found) is None
    assert not written.path.exists()


def test_a_file_that_was_never_finished_is_deleted(folder: KVFolder) -> None:
    path = folder.write(OWNER, TOKENS, STATE).path
    unfinished = path.with_suffix(".part")
    path.rename(unfinished)
    assert folder.scan() == []
    assert not unfinished.exists()


def test_a_file_that_is_gone_is_no_error(folder: KVFolder) -> None:
    written = folder.write(OWNER, TOKENS, STATE)
    folder.delete(written)
    folder.delete(written)
    assert folder.read(written) is None


def test_states_of_another_model_are_deleted(folder: KVFolder, tmp_path: Path) -> None:
    folder.write(OWNER, TOKENS, STATE)
    other = KVFolder(tmp_path / "kv" / "def")
    other.delete_others()
    assert other.scan() == []
    assert folder.scan() == []
