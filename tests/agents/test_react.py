"""The tool loop: what is offered when, and how errors come back to the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos.syscalls.errors import SyscallError

Run = Callable[..., Any]


def action(tool: str, **arguments: Any) -> str:
    return json.dumps({"tool": tool, "arguments": arguments}, separators=(",", ":"))


def script(**replies: str) -> Callable[[str], str]:
    """A reply for a user text that contains the words of a keyword (`_` is a space)."""

    def reply(said: str) -> str:
        return next(
            (text for words, text in replies.items() if words.replace("_", " ") in said), ""
        )

    return reply


def test_a_task_is_solved_by_a_tool_and_an_answer(run_program: Run) -> None:
    value, output = run_program(
        "react",
        "What is 6 times 7?",
        script=script(
            Task=action("calculator", expression="6*7"), Result=action("answer", text="It is 42.")
        ),
    )
    assert value == {
        "answer": "It is 42.",
        "is_answered": True,
        "steps": [
            {
                "tool": "calculator",
                "arguments": {"expression": "6*7"},
                "result": "42",
                "is_error": False,
                "is_repeat": False,
            }
        ],
    }
    assert output == 'calculator {"expression":"6*7"} = 42\nIt is 42.\n'


def test_an_error_of_a_tool_goes_back_to_the_model(run_program: Run) -> None:
    value, _ = run_program(
        "react",
        "Divide.",
        script=script(
            Task=action("calculator", expression="1/0"),
            divides_by_zero=action("calculator", expression="1/2"),
            **{"Result:_0.5": action("answer", text="A half.")},
        ),
    )
    first, second = value["steps"]
    assert first["is_error"]
    assert first["result"] == "Error: calculator: it divides by zero"
    assert second["result"] == "0.5"
    assert value["answer"] == "A half."


def test_there_is_no_answer_before_a_result(run_program: Run) -> None:
    value, _ = run_program(
        "react",
        "Say it.",
        tools=["calculator", "read_file"],
        max_steps=2,
        script=lambda said: action("answer", text="At once."),
    )
    assert [step["tool"] for step in value["steps"]] in (["calculator"], ["read_file"])
    assert value["answer"] == "At once."


def test_a_repeated_call_is_not_run_and_its_tool_not_offered_again(run_program: Run) -> None:
    value, _ = run_program(
        "react",
        "Loop.",
        tools=["calculator"],
        max_steps=6,
        script=lambda said: action("calculator", expression="1+1"),
    )
    shown = [(step["result"], step["is_repeat"]) for step in value["steps"]]
    assert shown == [("2", False), ("2", True)]


def test_the_last_step_answers(run_program: Run) -> None:
    expressions = iter(range(1, 100))
    seen: dict[str, str] = {}

    def always_another(said: str) -> str:
        if said not in seen:
            seen[said] = action("calculator", expression=f"{next(expressions)}+1")
        return seen[said]

    value, _ = run_program(
        "react", "Count.", tools=["calculator", "python"], max_steps=4, script=always_another
    )
    assert len(value["steps"]) == 3


def test_arguments_cut_by_their_length_are_an_error_for_the_model(run_program: Run) -> None:
    value, _ = run_program(
        "react",
        "Write.",
        tools=["python"],
        max_steps=2,
        script=lambda said: action("python", code="x" * 3000),
    )
    (step,) = value["steps"]
    assert step["is_error"]
    assert "did not end within" in step["result"]
    assert not value["is_answered"]


def test_a_tool_that_may_not_be_used_is_refused_before_anything_runs(run_program: Run) -> None:
    with pytest.raises(SyscallError, match="telescope") as caught:
        run_program("react", "Look.", tools=["calculator", "telescope"])
    assert caught.value.code == "invalid"


def test_one_step_is_too_few(run_program: Run) -> None:
    with pytest.raises(SyscallError, match="max_steps"):
        run_program("react", "Look.", max_steps=1)


def test_files_are_copied_to_where_the_tools_look(run_program: Run, tmp_path: Path) -> None:
    (tmp_path / "a long name.txt").write_text("The lamp is red.")
    value, _ = run_program(
        "react",
        "What does notes.txt say?",
        files={"notes.txt": str(tmp_path / "a long name.txt")},
        script=script(
            Task=action("read_file", path="notes.txt"), Result=action("answer", text="Red.")
        ),
    )
    assert value["steps"][0]["result"] == "The lamp is red."


def test_a_long_result_is_shown_in_part_and_says_so(run_program: Run, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word " * 400)
    value, output = run_program(
        "react",
        "Read long.txt.",
        files=[str(tmp_path / "long.txt")],
        script=script(
            Task=action("read_file", path="long.txt"), Result=action("answer", text="Words.")
        ),
    )
    assert value["steps"][0]["result"].endswith("[1399 more characters]")
    assert output.splitlines()[0].endswith("...")


def test_worked_examples_of_the_caller_are_checked(run_program: Run) -> None:
    worked = {
        "task": "Which way does the wind blow?",
        "tool": "calculator",
        "arguments": {"expression": "1"},
        "result": "1",
        "answer": "North.",
    }
    replies = script(
        Task=action("calculator", expression="1"), Result=action("answer", text="North.")
    )
    value, _ = run_program("react", "Which way?", worked=[worked], script=replies)
    assert value["is_answered"]
    with pytest.raises(SyscallError, match="worked"):
        run_program("react", "Which way?", worked=[{"task": "no more than this"}])


def test_without_embeddings_it_works_with_the_first_examples(run_program: Run) -> None:
    value, _ = run_program(
        "react",
        "What is 1?",
        options={"with_embedding": False},
        script=script(
            Task=action("calculator", expression="1"), Result=action("answer", text="One.")
        ),
    )
    assert value["answer"] == "One."
