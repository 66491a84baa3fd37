"""Tasks of the tool agent: what is in which split, and what counts as right."""

from __future__ import annotations

import re

import pytest

from llmos.agents.tool_tasks import SPLITS, TOOLS, convert, stock, tasks, weekday
from llmos.syscalls.errors import SyscallError


def test_the_same_seed_gives_the_same_tasks() -> None:
    assert tasks("train", 40, seed=3) == tasks("train", 40, seed=3)
    assert tasks("train", 40, seed=3) != tasks("train", 40, seed=4)


def test_no_two_tasks_are_alike_and_kinds_are_equally_many() -> None:
    found = tasks("dev", 64, seed=0)
    assert len({task.text for task in found}) == 64
    assert {sum(task.kind == kind for task in found) for kind in {t.kind for t in found}} == {8}


def test_no_sentence_is_in_two_splits() -> None:
    forms = [
        {re.sub(r"[\d-]+", "#", task.text) for task in tasks(split, 300, seed=1)}
        for split in SPLITS
    ]
    for one in range(3):
        for other in range(one):
            assert not forms[one] & forms[other]


def test_what_fills_a_sentence_is_in_one_split_only() -> None:
    def fillings(split: str) -> set[tuple[str, ...]]:
        found = tasks(split, 300, seed=2)  # pyright: ignore[reportArgumentType]
        return {
            tuple(sorted(re.findall(r"\d+", task.text)))
            for task in found
            if task.kind in ("sum", "product", "weekday")
        }

    assert not fillings("train") & fillings("test")
    items = [
        {task.result.split()[2] for task in tasks(split, 300, seed=2) if task.kind == "stock"}
        for split in SPLITS
    ]
    assert not items[0] & items[1]
    assert not items[0] & items[2]
    assert not items[1] & items[2]


def test_a_call_is_right_with_the_tool_and_the_result_of_the_task() -> None:
    task = next(task for task in tasks("train", 8, seed=0) if task.kind == "weekday")
    assert task.is_solved_by("weekday", task.result)
    assert not task.is_solved_by("calculator", task.result)
    assert not task.is_solved_by("weekday", "1950-01-01 is a Sunday")


def test_tools_answer_in_a_form_that_names_what_was_asked() -> None:
    assert convert(10, "miles", "kilometres") == "10 miles = 16.0934 kilometres"
    assert weekday("2024-02-29") == "2024-02-29 is a Thursday"
    assert stock("saw", "price").startswith("price of saw: ")
    assert {tool.spec.name for tool in TOOLS} == {"convert", "days_between", "weekday", "stock"}


@pytest.mark.parametrize(
    "call", [lambda: convert(1, "miles", "pounds"), lambda: weekday("2023-02-29")]
)
def test_a_tool_that_cannot_answer_says_why(call: object) -> None:
    with pytest.raises(SyscallError) as refused:
        call()  # pyright: ignore[reportCallIssue]
    assert refused.value.code == "tool_failed"
