"""Saved contexts and core memory on the disk: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llmos.memory.context_folder import ContextFolder, SavedContext
from llmos.memory.context_state import ContextState, Pages
from llmos.memory.segments import new_segment
from llmos.syscalls.content import user
from llmos.syscalls.errors import SyscallError


def saved(text: str, owner: str | None = None) -> SavedContext:
    state = ContextState(
        window={0: new_segment(0, user(text), None, 3)}, pages=(Pages("n", "mark"),), appended=1
    )
    return SavedContext(model="tiny", budget_tokens=100, policy="default", owner=owner, state=state)


def test_what_was_saved_comes_back_and_a_later_save_replaces_it(tmp_path: Path) -> None:
    folder = ContextFolder(tmp_path)
    assert folder.save("n", "talk", saved("one")) > 0
    folder.save("n", "talk", saved("two"))
    folder.save("m", "talk", saved("three"))
    assert folder.load("n", "talk") == saved("two")
    assert folder.names("n") == ["talk"]
    assert folder.names("nobody") == []


@pytest.mark.parametrize("namespace", ["..", "a/b", "x:y", "", "ü" * 20])
def test_any_namespace_is_a_folder_of_its_own_inside(tmp_path: Path, namespace: str) -> None:
    folder = ContextFolder(tmp_path / "inside")
    folder.write_core(namespace, "text")
    assert folder.core(namespace) == "text"
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert len(list((tmp_path / "inside").iterdir())) == 1


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ContextFolder(tmp_path)
    folder.save("n", "talk", saved("one"))
    folder.write_core("n", "old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: folder.save("n", "talk", saved("two")),
        lambda: folder.write_core("n", "new"),
    ):
        with pytest.raises(SyscallError, match="No space left") as refusal:
            write()
        assert refusal.value.code == "storage"
    assert folder.load("n", "talk") == saved("one")
    assert folder.core("n") == "old"
    assert {path.suffix for path in tmp_path.rglob("*.*")} == {".json", ".txt"}


def without_state(data: bytes) -> bytes:
    return data.replace(b'"state"', b'"stat"')


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-9], "no whole saved context"),
        (lambda data: b"\xff" + data, "no whole saved context"),
        (without_state, "no whole saved context"),
        (lambda data: data.replace(b'"version":1', b'"version":2'), "of version 2"),
    ],
)
def test_what_cannot_be_read_is_refused_and_left(tmp_path: Path, damage: Any, said: str) -> None:
    folder = ContextFolder(tmp_path)
    folder.save("n", "talk", saved("one"))
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(damage(file.read_bytes()))
    before = file.read_bytes()
    with pytest.raises(SyscallError, match=said) as refusal:
        folder.load("n", "talk")
    assert refusal.value.code == "storage"
    assert file.read_bytes() == before


def test_a_namespace_is_forgotten_with_all_that_is_kept_for_it(tmp_path: Path) -> None:
    folder = ContextFolder(tmp_path)
    for namespace in ("n", "ü/m"):
        folder.save(namespace, "talk", saved("one"))
        folder.write_core(namespace, "text")
    assert folder.namespaces() == ["n", "ü/m"]
    folder.forget("n")
    folder.forget("nobody's")
    assert (folder.names("n"), folder.core("n")) == ([], "")
    assert folder.namespaces() == ["ü/m"]
    assert (folder.names("ü/m"), folder.core("ü/m")) == (["talk"], "text")


def test_what_was_saved_for_an_owner_is_forgotten_alone(tmp_path: Path) -> None:
    folder = ContextFolder(tmp_path)
    folder.save("n", "his", saved("one", owner="bob"))
    folder.save("n", "hers", saved("two", owner="ann"))
    folder.save("n", "nobody's", saved("three"))
    folder.forget("n", owner="bob")
    assert folder.names("n") == ["hers", "nobody's"]
