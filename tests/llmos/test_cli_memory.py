"""`llmos memory`: the commands that need no model, and with the real one those that do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llmos.booting import boot, open_memory
from llmos.cli import app
from llmos.config import load_config
from llmos.memory.store import Store
from llmos.syscalls.calls import Note

DIMENSIONS = 384


@pytest.fixture(autouse=True)
def _home(work_folder: Path) -> None:
    (work_folder / "llmos.toml").write_text('home = "state"\n')


def llmos(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["memory", *arguments], catch_exceptions=False)


def said(*arguments: str) -> Any:
    done = llmos(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@contextmanager
def opened() -> Iterator[Store]:
    with open_memory(load_config()) as store:
        yield store


def fill(namespace: str, *texts: str, owner: str | None = None) -> None:
    with opened() as store:
        store.remember(
            namespace,
            [
                Note(text=text, source=f"{text}.md", metadata={"n": n})
                for n, text in enumerate(texts)
            ],
            [[1.0, float(n), *[0.0] * (DIMENSIONS - 2)] for n, _ in enumerate(texts)],
            owner=owner,
        )


def test_help_lists_the_commands() -> None:
    shown = llmos("--help").stdout
    for command in (
        "add",
        "search",
        "ls",
        "forget",
        "stat",
        "export",
        "import",
        "check",
        "backup",
        "vacuum",
    ):
        assert f"  {command} " in shown


def test_an_empty_memory_can_be_looked_at() -> None:
    assert "nothing is remembered" in llmos("ls").stdout
    assert said("ls") == []
    assert said("stat")["items"] == 0
    assert "items" in llmos("stat").stdout


def test_namespaces_are_listed() -> None:
    fill("one", "a", "b")
    fill("two", "c")
    assert said("ls") == [{"namespace": "one", "items": 2}, {"namespace": "two", "items": 1}]
    assert said("ls", "-n", "two") == [{"namespace": "two", "items": 1}]
    assert said("ls", "--files") == []


def test_forgetting_is_by_every_selector() -> None:
    fill("one", "a", "b", "c", owner="ann")
    fill("two", "d", owner="ann")
    assert said("forget", "-n", "one", "--source", "a.md") == {"count": 1}
    assert said("forget", "-n", "one", "--where", '{"n": {"$gte": 2}}') == {"count": 1}
    assert said("forget", "--owner", "ann") == {"count": 2}
    assert said("ls") == []


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["forget", "--source", "a.md"], 2, "name a namespace"),
        (["forget", "-n", "one"], 1, "name what to forget"),
        (["forget", "-n", "one", "--where", "{"], 2, "not JSON"),
        (["forget", "-n", "one", "--where", "[]"], 2, "an object"),
        (["export", "notes.txt"], 1, ".parquet"),
        (["import", "gone.jsonl"], 1, "there is no gone.jsonl"),
    ],
)
def test_what_cannot_be_meant_is_one_line(arguments: list[str], status: int, word: str) -> None:
    done = llmos(*arguments)
    assert done.exit_code == status
    assert word in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_notes_go_out_and_come_in(suffix: str) -> None:
    fill("one", "a", "b")
    file = f"notes.{suffix}"
    assert said("export", file)["notes"] == 2
    assert said("forget", "-n", "one", "--everything") == {"count": 2}
    done = said("import", file, "-n", "two", "--keep-vectors")
    assert done == {"notes": 2, "duplicates": 0, "embedded": 0}
    assert said("ls") == [{"namespace": "two", "items": 2}]


def test_a_store_is_checked_copied_and_emptied_of_what_was_forgotten(tmp_path: Path) -> None:
    fill("one", "secretword", "b")
    assert said("check") == {"notes": 2, "problems": []}
    assert "all whole" in llmos("check").stdout
    assert llmos("backup", "copy").exit_code == 0
    assert llmos("backup", "copy").exit_code == 1  # there is one already
    copy = Store(tmp_path / "copy", dimensions=DIMENSIONS)
    assert copy.stat().items == 2
    copy.close()
    assert said("forget", "-n", "one", "--source", "secretword.md") == {"count": 1}
    assert llmos("vacuum").exit_code == 0
    files = [file for file in (tmp_path / "state" / "memory").iterdir() if file.is_file()]
    assert files
    assert not [file for file in files if b"secretword" in file.read_bytes()]


def test_the_commands_work_beside_a_running_kernel() -> None:
    fill("one", "a", "b")

    async def main() -> None:
        async with boot(load_config()) as kernel:
            assert (await kernel.os.memory_stat()).items == 2
            assert await asyncio.to_thread(said, "ls") == [{"namespace": "one", "items": 2}]
            gone = await asyncio.to_thread(said, "forget", "-n", "one", "--source", "a.md")
            assert gone == {"count": 1}
            assert (await kernel.os.memory_stat()).items == 1
            (hit,) = await kernel.os.retrieve("a b", mode="lexical", namespaces=["one"])
            assert hit.text == "b"

    asyncio.run(main())


def test_damage_is_told_with_what_to_do(tmp_path: Path) -> None:
    fill("one", "a")
    with opened() as store:
        store.record(lambda sql: sql.execute("DELETE FROM vectors"))  # pyright: ignore
    done = llmos("check")
    assert done.exit_code == 1
    assert "no whole vector" in done.stdout
    assert "restore a backup" in done.stdout
    (tmp_path / "state" / "memory" / "notes.db").write_bytes(b"nonsense")
    broken = llmos("check")
    assert broken.exit_code == 1
    assert "damaged" in broken.stderr and "backup" in broken.stderr


@pytest.mark.model
@pytest.mark.usefixtures("minilm_path")
def test_files_are_taken_in_searched_and_forgotten(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "lamp.md").write_text("# Lamp\n\nThe lamp on the tower is red.\n")
    (files / "bread.txt").write_text("Bread is baked for forty minutes.\n")
    (files / "odd.txt").write_bytes(b"caf\xe9")
    done = said("add", "files")
    assert (done["new"], done["refused"], done["notes"]) == (2, 1, 2)
    assert done["problems"][0]["problem"] == "encoding"
    assert said("add", "files")["unchanged"] == 2
    hit = said("search", "What colour is the light?", "-k", "1")[0]
    assert (Path(hit["source"]).name, hit["metadata"]["line"]) == ("lamp.md", 3)
    shown = llmos("search", "baking time", "-k", "1", "--mode", "dense").stdout
    assert "bread.txt, line 1" in shown
    assert [Path(one["path"]).name for one in said("ls", "--files")] == ["bread.txt", "lamp.md"]
    assert "lamp.md" in llmos("ls", "--files").stdout
    assert said("forget", "-n", "documents", "--source", "files/lamp.md") == {"count": 1}
    assert "1 new, 1 unchanged" in llmos("add", "files").stdout
