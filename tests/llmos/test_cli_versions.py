"""`llmos models`: versions listed, shown, promoted, rolled back, pinned and deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llmos.cli import app
from llmos.kernel.prompting import Prompting
from llmos.memory.registry import Registry
from llmos.syscalls.results import ModelVersion


@pytest.fixture(autouse=True)
def _folder(scripted_folder: Path) -> None:
    """A working folder with a scripted model, and two versions of it."""
    trained = scripted_folder / "trained"
    trained.mkdir()
    (trained / "weights").write_text("1234")
    registry = Registry(scripted_folder / "state" / "models")
    for name, parent in (("first", "scripted"), ("second", "first")):
        registry.add(
            ModelVersion(
                name=name,
                kind="adapter",
                base="scripted",
                parent=parent,
                path=str(trained),
                metrics={"loss": 0.5},
            )
        )
    registry.close()


def llmos(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments], catch_exceptions=False)


def told(*arguments: str) -> Any:
    done = llmos(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_without_a_command_models_are_listed_as_ever() -> None:
    assert "scripted" in told()["configured"]


def test_versions_are_listed_and_what_serves_has_a_star() -> None:
    assert [one["name"] for one in told("versions")] == ["first", "second"]
    told("promote", "first")
    assert "first *" in llmos("versions").stdout


def test_a_version_is_shown_with_its_lineage_and_what_was_decided() -> None:
    told("promote", "second", "--reason", "better tools")
    shown = told("show", "second")
    assert shown["lineage"] == ["second", "first"]
    assert [one["reason"] for one in shown["decisions"]] == ["better tools"]
    assert "better tools" in llmos("show", "second").stdout


def test_a_rollback_says_what_serves() -> None:
    told("promote", "first")
    told("promote", "second")
    assert told("rollback") == {"slot": "scripted", "serving": "first"}
    assert told("rollback", "scripted") == {"slot": "scripted", "serving": None}
    assert llmos("rollback").exit_code == 1


def test_what_is_needed_is_not_deleted() -> None:
    assert "made from first" in llmos("delete", "first").stderr
    told("pin", "second")
    assert "pinned" in llmos("delete", "second").stderr
    told("pin", "second", "--undo")
    assert told("delete", "second") == {"name": "second", "freed_bytes": 0}
    assert told("delete", "first") == {"name": "first", "freed_bytes": 4}


def test_damage_is_found_by_reading_every_byte(tmp_path: Path) -> None:
    assert told("versions", "--verify") == {"versions": 2, "problems": {}}
    file = (tmp_path / "state/models/versions/first/weights").resolve()
    file.chmod(0o644)
    file.write_text("????")
    done = llmos("versions", "--verify")
    assert done.exit_code == 1
    assert "first is damaged" in done.stdout


def test_an_unknown_version_is_one_line_with_the_known_ones() -> None:
    done = llmos("promote", "third")
    assert done.exit_code == 4
    assert "first, second" in done.stderr


def test_a_gate_of_the_settings_refuses(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text("{}\n")
    gate = '[[gates.scripted]]\nname = "g"\ndata = "set.jsonl"\nmetric = "loss"\nat_most = 1\n'
    with (tmp_path / "llmos.toml").open("a") as config:
        config.write(gate)
    assert llmos("promote", "first").exit_code != 0  # a scripted model cannot be measured
    assert told("show", "first")["is_promoted"] is False


def test_the_examples_of_a_prompted_version_go_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[str] = []

    async def forget(self: Prompting, version: ModelVersion) -> None:
        forgotten.append(version.name)

    monkeypatch.setattr(Prompting, "forget", forget)
    registry = Registry(tmp_path / "state" / "models")
    registry.add(ModelVersion(name="few", kind="prompt", base="scripted"))
    registry.close()
    assert told("delete", "few") == {"name": "few", "freed_bytes": 0}
    assert forgotten == ["few"]
