"""Several answers from forks of one prompt, and which of them is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llmos.agents.best_of_n import ranked
from llmos.syscalls.errors import SyscallError

Run = Callable[..., Any]


def test_the_answer_that_most_writers_gave_is_kept_and_then_the_likeliest() -> None:
    written = [("It is red.", -0.1), ("It is blue.", -0.9), ("it is  blue.", -0.5), ("Old.", -0.4)]
    assert ranked(written) == [
        {"text": "it is  blue.", "votes": 2, "logprob": -0.5},
        {"text": "It is red.", "votes": 1, "logprob": -0.1},
        {"text": "Old.", "votes": 1, "logprob": -0.4},
    ]


def test_equal_answers_are_one_candidate_with_a_vote_each(run_program: Run) -> None:
    value, output = run_program(
        "best-of-n", "Why?", n=5, temperature=0.0, script={"Question: Why?": "The wind is cold."}
    )
    assert [(one["text"], one["votes"]) for one in value["candidates"]] == [
        ("The wind is cold.", 5)
    ]
    assert output == "5 x The wind is cold.\n"


def test_the_writers_start_from_the_state_of_one_prompt(boot_agents: Any) -> None:
    async def scenario() -> Any:
        async with boot_agents({"Question: Why?": "The wind is cold."}) as kernel:
            await kernel.os.result(await kernel.os.spawn("best-of-n", "Why?", n=6))
            return (await kernel.os.stat()).programs["best-of-n-writer"]

    used = asyncio.run(scenario())
    assert used.tokens_cached > 0.6 * used.tokens_in


def test_no_answer_at_all_is_refused(run_program: Run) -> None:
    with pytest.raises(SyscallError, match="n: give 1 to"):
        run_program("best-of-n", "Why?", n=0)
