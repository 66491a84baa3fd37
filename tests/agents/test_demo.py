"""The demonstration job with a scripted model: all of it runs, and what fails is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.demo import QUESTION, TOPIC
from llmos.syscalls.errors import SyscallError

LAMP = "The kernel of the lighthouse shares its lamp between ships."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = tmp_path / "files"
    files.mkdir()
    for number in range(5):
        (files / f"note{number}.md").write_text(f"{LAMP} " + "It is old and red. " * number)
    return files


def script(said: str) -> str:
    if said.startswith("Text: "):
        return json.dumps({"questions": ["What is the lamp of the ships?"]}, separators=(",", ":"))
    if said.startswith("Facts:"):
        return "The kernel shares its lamp between ships [1]."
    return LAMP


def test_the_job_gives_an_answer_with_sources(
    boot_agents: Callable[..., Any], folder: Path
) -> None:
    async def main() -> None:
        async with boot_agents(script) as kernel:
            pid = await kernel.os.spawn("demo", str(folder))
            value = await kernel.os.result(pid)
            assert value["question"] == QUESTION
            assert value["answer"] == "The kernel shares its lamp between ships [1]."
            assert value["sources"][0].startswith("note")
            assert value["index"]["files"] == 5
            assert set(value["agents"]) == {
                "calculator",
                "critic",
                "debate",
                "programmer",
                "reader",
                "summary",
            }
            ran = (await kernel.os.stat()).programs
            assert {"indexer", "research-worker", "debater", "demo-reporter", "react"} <= set(ran)

    asyncio.run(main())


def test_no_fewer_than_eight_agents_work_at_once(
    boot_agents: Callable[..., Any], folder: Path
) -> None:
    async def main() -> int:
        async with boot_agents(script) as kernel:
            await kernel.os.subscribe(TOPIC)
            pid = await kernel.os.spawn("demo", str(folder))
            while "agents started" not in str((await kernel.os.receive(topic=TOPIC)).body):
                pass
            alive = [p for p in await kernel.os.ps() if p.state not in ("zombie", "dead")]
            await kernel.os.result(pid)
            return len(alive) - 1  # init is none

    assert asyncio.run(main()) >= 8


def test_a_folder_without_text_is_refused(run_program: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SyscallError, match="no text file") as caught:
        run_program("demo", str(tmp_path / "empty"))
    assert caught.value.code == "not_found"
