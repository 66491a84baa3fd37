"""A tree of forks: what is grown, what is judged, and what is gone on from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llmos.syscalls.errors import SyscallError

Run = Callable[..., Any]

SCRIPT = {
    "Step 1:": "Rain falls on roofs and can be kept.",
    "Step 2:": "A barrel below the roof holds it.",
    "Score this step from 1 (bad) to 5 (good).": "4",
    "Answer the question from these steps in one sentence.": "Keep the rain in barrels.",
}


def test_each_level_has_its_branches_and_the_best_way_gives_the_answer(run_program: Run) -> None:
    value, output = run_program("tree-of-thought", "How?", breadth=2, depth=2, script=SCRIPT)
    assert value["steps"] == [SCRIPT["Step 1:"], SCRIPT["Step 2:"]]
    assert (value["answer"], value["score"]) == ("Keep the rain in barrels.", 4)
    assert [len(level) for level in value["levels"]] == [2, 2]
    assert output.splitlines()[-1] == "answer: Keep the rain in barrels."


def test_a_wider_beam_goes_on_from_several_branches(run_program: Run) -> None:
    value, _ = run_program("tree-of-thought", "How?", breadth=3, depth=2, keep=2, script=SCRIPT)
    assert [len(level) for level in value["levels"]] == [3, 6]


def test_branches_and_judges_read_nothing_twice(boot_agents: Any) -> None:
    async def scenario() -> Any:
        async with boot_agents(SCRIPT) as kernel:
            pid = await kernel.os.spawn("tree-of-thought", "How?", breadth=3, depth=2)
            await kernel.os.result(pid)
            return (await kernel.os.stat()).programs["tree-of-thought"]

    used = asyncio.run(scenario())
    assert used.tokens_cached > 0.6 * used.tokens_in


@pytest.mark.parametrize("sizes", [{"breadth": 0}, {"depth": 0}, {"keep": 0}, {"breadth": 65}])
def test_sizes_out_of_range_are_refused(run_program: Run, sizes: dict[str, int]) -> None:
    with pytest.raises(SyscallError, match=r"breadth|depth|keep"):
        run_program("tree-of-thought", "How?", **sizes)
