"""Research: the plan, the graph of workers, and an answer whose citations hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos.syscalls.errors import SyscallError

Run = Callable[..., Any]

QUESTION = "How does a lighthouse help ships at night?"
LAMP = "The lighthouse sends a red light every ten seconds."
SHIPS = "Ships at night see the light from twenty miles away."
PLAN = ["What light does the lighthouse send?", "How do ships see it?"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = tmp_path / "files"
    files.mkdir()
    (files / "lamp.md").write_text(f"{LAMP} It is old.")
    (files / "ships.md").write_text(f"{SHIPS} They are blue.")
    return files


def script(draft: str, plan: list[str] = PLAN) -> Callable[[str], str]:
    def reply(said: str) -> str:
        if said.startswith("Text: "):
            return json.dumps({"questions": plan}, separators=(",", ":"))
        if said.startswith("Facts:"):
            return draft
        return LAMP if PLAN[0] in said else SHIPS

    return reply


def test_a_question_becomes_a_plan_workers_and_a_cited_answer(
    run_program: Run, folder: Path
) -> None:
    draft = "Ships at night see the light from miles away [1]. The lighthouse sends red light [2]."
    value, output = run_program(
        "research", QUESTION, folder=str(folder), workers=3, script=script(draft)
    )
    assert value["plan"] == [QUESTION, *PLAN]
    assert value["answer"] == draft
    assert not value["is_quoted"]
    assert [(s["n"], s["quote"], Path(s["source"]).name, s["place"]) for s in value["sources"]] == [
        (1, SHIPS, "ships.md", "line 1"),
        (2, LAMP, "lamp.md", "line 1"),
    ]
    assert value["dropped"] == []
    assert value["graph"]["critical_path"][-1] == "writer"
    assert output.splitlines()[-1] == draft


def test_what_the_sources_do_not_bear_out_is_dropped_and_told(
    run_program: Run, folder: Path
) -> None:
    draft = "Lighthouses belong to wealthy bankers [1]. The lighthouse sends red light [2]."
    value, _ = run_program(
        "research", QUESTION, folder=str(folder), workers=3, script=script(draft)
    )
    assert value["answer"] == "The lighthouse sends red light [2]."
    assert "Lighthouses belong to wealthy bankers" in value["dropped"][0]


def test_where_nothing_is_left_the_quotes_are_the_answer(run_program: Run, folder: Path) -> None:
    value, _ = run_program(
        "research",
        QUESTION,
        folder=str(folder),
        workers=3,
        script=script("Lighthouses belong to wealthy bankers [1]."),
    )
    assert value["is_quoted"]
    assert value["answer"] == f"{SHIPS[:-1]} [1]. {LAMP[:-1]} [2]."


def test_repeated_questions_are_asked_once(run_program: Run, folder: Path) -> None:
    value, _ = run_program(
        "research",
        "What Is Light?",
        folder=str(folder),
        workers=2,
        script=script("Ships at night see the light [1].", plan=["What is light?"]),
    )
    assert value["plan"] == ["What Is Light?"]


def test_one_worker_needs_no_plan(run_program: Run, folder: Path) -> None:
    value, _ = run_program(
        "research",
        QUESTION,
        folder=str(folder),
        workers=1,
        script=script("Ships at night see the light [1]."),
    )
    assert value["plan"] == [QUESTION]


def test_a_namespace_without_anything_gives_no_answer(run_program: Run) -> None:
    value, _ = run_program("research", QUESTION, namespace="empty", workers=1)
    assert (value["answer"], value["sources"]) == (None, [])
    assert value["dropped"] == ["no worker found a sentence that fits its question"]


@pytest.mark.parametrize("arguments", [{}, {"namespace": "n", "workers": 0}])
def test_wrong_arguments_are_named(run_program: Run, arguments: dict[str, Any]) -> None:
    with pytest.raises(SyscallError) as caught:
        run_program("research", QUESTION, **arguments)
    assert caught.value.code == "invalid"
