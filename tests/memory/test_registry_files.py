"""What the registry does with files: kept once, checked, and gone only when nobody needs them."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.memory.registry import Registry
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ModelVersion


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path / "models")
    yield registry
    registry.close()


def folder(tmp_path: Path, name: str, **files: str) -> Path:
    path = tmp_path / "trained" / name
    path.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (path / file).write_text(text)
    return path


def version(name: str, path: Path | None = None, **more: Any) -> ModelVersion:
    values = {"name": name, "kind": "adapter", "base": "small", **more}
    return ModelVersion(**values, path=None if path is None else str(path))


def blobs(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "models" / "blobs").rglob("*") if path.is_file()]


def refused(code: str, action: Any, *args: Any) -> SyscallError:
    with pytest.raises(SyscallError) as problem:
        action(*args)
    assert problem.value.code == code, problem.value
    return problem.value


def test_a_version_has_files_of_its_own(registry: Registry, tmp_path: Path) -> None:
    source = folder(tmp_path, "a", weights="1234", settings="{}")
    stored = registry.add(version("a", source))
    shutil.rmtree(source)
    found = registry.load("a")
    assert stored.path == str(found)
    assert (found / "weights").read_text() == "1234"
    assert stored.size_bytes == 6
    assert len(stored.digest) == 64


def test_a_single_file_is_a_version_too(registry: Registry, tmp_path: Path) -> None:
    source = folder(tmp_path, "a", weights="1234") / "weights"
    registry.add(version("a", source))
    assert registry.load("a").name == "weights"
    assert registry.load("a").read_text() == "1234"


def test_versions_share_what_they_have_in_common(registry: Registry, tmp_path: Path) -> None:
    one = registry.add(version("a", folder(tmp_path, "a", weights="one", vocabulary="words")))
    other = registry.add(version("b", folder(tmp_path, "b", weights="two", vocabulary="words")))
    assert one.digest != other.digest
    assert len(blobs(tmp_path)) == 3
    assert registry.remove("a") == len("one")
    assert len(blobs(tmp_path)) == 2
    assert (registry.load("b") / "vocabulary").read_text() == "words"


def test_a_path_where_nothing_is_is_refused(registry: Registry, tmp_path: Path) -> None:
    assert refused("invalid", registry.add, version("a", tmp_path / "x")).fields["field"] == "path"
    assert registry.list() == []


def test_damage_is_found_when_a_version_is_loaded_and_mended_by_its_file(
    registry: Registry, tmp_path: Path
) -> None:
    source = folder(tmp_path, "a", weights="1234")
    registry.add(version("a", source))
    [blob] = blobs(tmp_path)
    blob.chmod(0o644)
    blob.write_text("1235")
    problem = refused("storage", registry.load, "a")
    assert problem.fields["file"] == "weights"
    assert problem.fields["path"] == str(blob)
    registry.add(version("b", source))
    assert (registry.load("a") / "weights").read_text() == "1234"


def test_a_lost_link_is_made_again(registry: Registry, tmp_path: Path) -> None:
    registry.add(version("a", folder(tmp_path, "a", weights="1234")))
    (registry.load("a") / "weights").unlink()
    assert (registry.load("a") / "weights").read_text() == "1234"


def test_the_store_can_be_moved(tmp_path: Path) -> None:
    first = Registry(tmp_path / "models")
    path = first.add(version("a", folder(tmp_path, "a", weights="1234"))).path
    first.close()
    (tmp_path / "models").rename(tmp_path / "moved")
    second = Registry(tmp_path / "moved")
    assert (second.load("a") / "weights").read_text() == "1234"
    assert not Path(str(path)).exists()
    second.close()


def test_a_full_disk_is_a_storage_error_and_nothing_is_recorded(
    registry: Registry, tmp_path: Path
) -> None:
    registry.add(version("a", folder(tmp_path, "a", weights="1234")))
    source = folder(tmp_path, "b", first="small", weights="x" * 3_000_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        refused("storage", registry.add, version("b", source))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [one.name for one in registry.list()] == ["a"]
    assert len(blobs(tmp_path)) == 1
    registry.add(version("b", source))
    registry.load("b")


# --- who needs a version ---


def test_a_version_that_others_were_made_from_is_not_deleted(registry: Registry) -> None:
    registry.add(version("a"))
    registry.add(version("b", parent="a"))
    registry.add(version("c", base="a"))
    assert refused("busy", registry.remove, "a").fields["children"] == ["b", "c"]
    registry.remove("b")
    registry.remove("c")
    registry.remove("a")
    assert registry.list() == []


def test_a_pinned_version_is_not_deleted(registry: Registry) -> None:
    registry.add(version("a"))
    assert registry.pin("a").is_pinned
    refused("busy", registry.remove, "a")
    registry.pin("a", is_pinned=False)
    registry.remove("a")


def test_a_version_in_use_is_not_deleted_and_says_who_uses_it(
    registry: Registry, tmp_path: Path
) -> None:
    registry.add(version("a", folder(tmp_path, "a", weights="1")))
    with registry.used(["a"], 7), registry.used(["a"], 3):
        problem = refused("busy", registry.remove, "a")
        assert problem.fields["pids"] == [3, 7]
        assert problem.is_retryable
    with registry.used(["a"], 7):
        refused("busy", registry.remove, "a")
    assert (registry.load("a") / "weights").exists()
    registry.remove("a")


def test_the_delete_of_another_process_waits_for_ours_and_says_so(
    registry: Registry, tmp_path: Path
) -> None:
    registry.add(version("a", folder(tmp_path, "a", weights="1")))
    other = Registry(tmp_path / "models")
    with registry.used(["a"], 7):
        assert "another kernel" in refused("busy", other.remove, "a").message
    other.remove("a")
    refused("unknown_model", registry.get, "a")
    other.close()


def test_a_version_that_is_being_deleted_cannot_be_used(registry: Registry) -> None:
    registry.add(version("a"))
    with registry.uses.nobody("a"):
        problem = refused("busy", registry.used(["a"], 1).__enter__)
        assert problem.is_retryable


def test_lineage_goes_from_a_version_to_what_it_was_made_from(registry: Registry) -> None:
    registry.add(version("a", parent="small"))
    registry.add(version("b", parent="a"))
    registry.add(version("c", parent="b"))
    registry.add(version("other", parent="a"))
    assert [one.name for one in registry.lineage("c")] == ["c", "b", "a"]


def test_a_task_model_serves_a_slot_of_its_own_and_may_be_given_another(
    registry: Registry,
) -> None:
    registry.add(ModelVersion(name="t", kind="task", base="minilm", card={"objective": "tag"}))
    assert registry.promote("t").slot == "tag"
    refused("invalid", lambda: registry.promote("t", slot="people"))
    registry.rollback("tag")
    registry.promote("t", slot="people")
    assert (registry.promoted("people"), registry.promoted("tag")) == ("t", None)
    registry.add(version("a"))
    refused("invalid", lambda: registry.promote("a", slot="elsewhere"))


def test_what_serves_is_known_at_once_here_and_in_another_process(tmp_path: Path) -> None:
    one, other = Registry(tmp_path / "models"), Registry(tmp_path / "models")
    for name in ("a", "b"):
        one.add(version(name))
    for registry, name in ((one, "a"), (other, "b"), (one, "a"), (other, "b")):
        registry.promote(name)
        for reader in (one, other):
            serving = reader.serving("small")
            assert serving is not None and serving.name == name
    one.rollback("small")
    serving = other.serving("small")
    assert serving is not None and serving.name == "a"
    one.close()
    other.close()


def test_decisions_outlive_what_they_are_about(registry: Registry) -> None:
    registry.add(version("a"))
    registry.promote("a")
    registry.rollback("small", reason="worse in use")
    registry.remove("a")
    told = [(one.action, one.name, one.before, one.reason) for one in registry.decisions("a")]
    assert told == [
        ("delete", "a", "a", ""),
        ("rollback", None, "a", "worse in use"),
        ("promote", "a", None, ""),
    ]


# --- an older registry, a crash, other processes ---

_OLDER = """
CREATE TABLE versions (
    name TEXT PRIMARY KEY, kind TEXT NOT NULL, base TEXT, path TEXT, parent TEXT,
    metrics TEXT NOT NULL, card TEXT NOT NULL, created_at REAL NOT NULL
) STRICT;
CREATE TABLE promotions (
    id INTEGER PRIMARY KEY, base TEXT NOT NULL,
    name TEXT NOT NULL REFERENCES versions (name) ON DELETE CASCADE,
    at REAL NOT NULL, undone_at REAL
) STRICT;
CREATE INDEX promotions_in_force ON promotions (base, id) WHERE undone_at IS NULL;
"""


def older(tmp_path: Path, path: Path) -> None:
    (tmp_path / "models").mkdir()
    database = sqlite3.connect(tmp_path / "models" / "registry.sqlite")
    database.executescript(_OLDER)
    for name, place in (("a", str(path)), ("gone", str(tmp_path / "nowhere"))):
        database.execute(
            "INSERT INTO versions VALUES (?, 'adapter', 'small', ?, 'small', ?, '{}', 1.0)",
            (name, place, json.dumps({"loss": 0.5})),
        )
    database.execute("INSERT INTO promotions (base, name, at) VALUES ('small', 'a', 2.0)")
    database.commit()
    database.close()


def test_an_older_registry_is_brought_up_to_date_with_its_files(tmp_path: Path) -> None:
    source = folder(tmp_path, "a", weights="1234")
    older(tmp_path, source)
    registry = Registry(tmp_path / "models")
    found = registry.get("a")
    assert (found.metrics, found.slot, found.is_promoted) == ({"loss": 0.5}, "small", True)
    assert found.size_bytes == 4
    shutil.rmtree(source)
    assert (registry.load("a") / "weights").read_text() == "1234"
    registry.rollback("small")
    registry.close()
    again = Registry(tmp_path / "models")
    assert not again.get("a").is_promoted
    again.close()


def test_an_older_registry_stays_as_it_was_when_its_files_find_no_room(tmp_path: Path) -> None:
    older(tmp_path, folder(tmp_path, "a", weights="x" * 3_000_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        refused("storage", Registry, tmp_path / "models")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    registry = Registry(tmp_path / "models")
    assert registry.get("a").size_bytes == 3_000_000
    registry.close()


def test_a_registry_of_a_newer_llmos_is_refused(tmp_path: Path) -> None:
    Registry(tmp_path / "models").close()
    database = sqlite3.connect(tmp_path / "models" / "registry.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.close()
    assert "newer" in refused("storage", Registry, tmp_path / "models").message


_KILLED_IN_ADD = """
import os, signal, sys
from pathlib import Path
from llmos.memory import registry as module
from llmos.syscalls.results import ModelVersion

registry = module.Registry(Path(sys.argv[1]))
module.rows.insert = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
registry.add(ModelVersion(name="b", kind="adapter", base="small", path=sys.argv[2]))
"""


def test_what_a_killed_add_left_is_swept_away(tmp_path: Path) -> None:
    first = Registry(tmp_path / "models")
    first.add(version("a", folder(tmp_path, "a", weights="one")))
    first.close()
    source = folder(tmp_path, "b", weights="two")
    command = [sys.executable, "-c", _KILLED_IN_ADD, str(tmp_path / "models"), str(source)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert len(blobs(tmp_path)) == 2
    registry = Registry(tmp_path / "models")
    assert len(blobs(tmp_path)) == 1
    assert [one.name for one in registry.list()] == ["a"]
    registry.add(version("b", source))
    assert (registry.load("b") / "weights").read_text() == "two"
    registry.close()


_BUSY_WRITER = """
import sys
from pathlib import Path
from llmos.memory.registry import Registry
from llmos.syscalls.results import ModelVersion

home, source, mine = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
registry = Registry(home)
for number in range(15):
    (source / "weights").write_text(f"{mine} {number}")
    name = f"{mine}{number}"
    registry.add(ModelVersion(name=name, kind="adapter", base=mine, path=str(source)))
    registry.promote(name)
    if number % 3 == 0:
        registry.rollback(mine)
        registry.remove(name)
registry.close()
"""


def test_two_processes_work_on_one_registry(tmp_path: Path) -> None:
    home = tmp_path / "models"
    writers = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                _BUSY_WRITER,
                str(home),
                str(folder(tmp_path, mine, vocabulary="the same")),
                mine,
            ]
        )
        for mine in ("left", "right")
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    registry = Registry(home)
    found = registry.list()
    assert len(found) == 20
    for one in found:
        assert (registry.load(one.name) / "weights").read_text() == (
            f"{one.base} {one.name.removeprefix(str(one.base))}"
        )
    assert len(blobs(tmp_path)) == 21
    assert registry.promoted("left") == "left14"
    registry.close()


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "remove", "promote", "rollback", "reopen"]),
            st.sampled_from("abc"),
            st.sampled_from(["x", "y"]),
        ),
        max_size=14,
    )
)
def test_contents_are_those_of_the_versions_whatever_was_done(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, str]]
) -> None:
    root = tmp_path_factory.mktemp("registry")
    registry = Registry(root / "models")
    texts: dict[str, str] = {}
    for action, name, text in steps:
        try:
            match action:
                case "add":
                    registry.add(version(name, folder(root, f"{name}{text}", weights=text)))
                    texts[name] = text
                case "remove":
                    registry.remove(name)
                    del texts[name]
                case "promote":
                    registry.promote(name)
                case "rollback":
                    registry.rollback("small")
                case _:
                    registry.close()
                    registry = Registry(root / "models")
        except SyscallError as problem:
            assert problem.code in ("invalid", "unknown_model", "busy", "not_found")
        assert {one.name for one in registry.list()} == set(texts)
        assert {path.read_text() for path in blobs(root)} == set(texts.values())
        for known, text_of in texts.items():
            assert (registry.load(known) / "weights").read_text() == text_of
    registry.close()
