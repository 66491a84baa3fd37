"""The indexer: what it takes, that it does nothing twice, and what it says of odd files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.agents.indexing import namespace_of

BootAgents = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = tmp_path / "files"
    (files / "deep").mkdir(parents=True)
    (files / "lamp.md").write_text("The lamp is red.\n\n" + "It turns. " * 40)
    (files / "deep" / "ship.txt").write_text("Ships see the lamp.")
    (files / "odd.txt").write_bytes(b"caf\xe9 is open")
    (files / "image.png").write_bytes(b"\x89PNG")
    return files


async def index_and_find(os: OS, folder: str, query: str) -> list[Any]:
    index = await os.result(await os.spawn("indexer", folder))
    hits = await os.retrieve(query, k=2, namespaces=[namespace_of(folder)])
    return [index, hits]


def test_files_are_found_again_with_their_places(folder: Path, boot_agents: BootAgents) -> None:
    async def main() -> None:
        async with boot_agents() as kernel:
            index, hits = await index_and_find(kernel.os, str(folder), "ships")
            assert (index["files"], index["unchanged"]) == (2, 0)
            skipped = dict(line.split(": ", 1) for line in index["skipped"])
            assert set(skipped) == {str(folder / "image.png"), str(folder / "odd.txt")}
            assert hits[0].source == str(folder / "deep" / "ship.txt")
            assert (hits[0].position, hits[0].metadata["line"]) == (0, 1)

    asyncio.run(main())


def test_nothing_is_indexed_twice(folder: Path, boot_agents: BootAgents) -> None:
    async def main() -> None:
        async with boot_agents() as kernel:
            first, _ = await index_and_find(kernel.os, str(folder), "lamp")
            items = (await kernel.os.memory_stat()).items
            again, _ = await index_and_find(kernel.os, str(folder), "lamp")
            assert (again["unchanged"], again["notes"]) == (2, 0)
            assert (await kernel.os.memory_stat()).items == items == first["notes"]

    asyncio.run(main())


def test_a_changed_file_replaces_what_was_there(folder: Path, boot_agents: BootAgents) -> None:
    async def main() -> None:
        async with boot_agents() as kernel:
            await index_and_find(kernel.os, str(folder), "lamp")
            items = (await kernel.os.memory_stat()).items
            (folder / "deep" / "ship.txt").write_text("Boats see the lamp.")
            again, _ = await index_and_find(kernel.os, str(folder), "boats")
            assert (again["unchanged"], again["notes"]) == (1, 1)
            assert (await kernel.os.memory_stat()).items == items

    asyncio.run(main())


def test_some_files_of_a_folder_can_be_indexed(folder: Path, boot_agents: BootAgents) -> None:
    async def main() -> None:
        async with boot_agents() as kernel:
            path = str(folder / "lamp.md")
            pid = await kernel.os.spawn("indexer", str(folder), paths=[path])
            assert (await kernel.os.result(pid))["files"] == 1

    asyncio.run(main())


def test_a_folder_has_the_same_namespace_every_time() -> None:
    assert namespace_of("/a") == namespace_of("/a", pid=7) != namespace_of("/b")
    assert namespace_of("a", pid=7) != namespace_of("a", pid=8)
