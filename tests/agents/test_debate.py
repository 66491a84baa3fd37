"""A debate between forks of one context, and a review."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from llmos.syscalls.errors import SyscallError

Run = Callable[..., Any]

VERDICT = json.dumps(
    {"winner": "against", "reason": "The second side gave reasons."}, separators=(",", ":")
)


def script(said: str) -> str:
    if said.startswith("Claim:"):
        return VERDICT
    stance = "I disagree" if "against" in said else "I agree"
    turn = "once more" if said.startswith("The other side said") else "first of all"
    return f"{stance} because lamps are bright {turn}."


def test_two_sides_answer_each_other_and_a_judge_decides(run_program: Run) -> None:
    value, output = run_program("debate", "Lamps are good.", rounds=2, script=script)
    assert value["arguments"] == [
        {"side": "for", "text": "I agree because lamps are bright first of all."},
        {"side": "against", "text": "I disagree because lamps are bright once more."},
        {"side": "for", "text": "I agree because lamps are bright once more."},
        {"side": "against", "text": "I disagree because lamps are bright once more."},
    ]
    assert (value["winner"], value["reason"]) == ("against", "The second side gave reasons.")
    assert output.splitlines()[-1] == "winner: against. The second side gave reasons."


def test_a_debate_needs_a_round(run_program: Run) -> None:
    with pytest.raises(SyscallError, match="rounds"):
        run_program("debate", "Lamps are good.", rounds=0)


def test_a_review_has_a_score_and_a_remark(run_program: Run) -> None:
    reply = '{"score":4,"remark":"Short and clear words."}'
    value, output = run_program("critic", "Lamps.", angle="style", script=lambda said: reply)
    assert value == {"angle": "style", "score": 4, "remark": "Short and clear words."}
    assert output == "style: 4/5. Short and clear words.\n"


def test_a_review_takes_its_text_from_a_pipe_too(run_program: Run) -> None:
    seen: list[str] = []

    def reply(said: str) -> str:
        seen.append(said)
        return '{"score":2,"remark":"Rather short for a text."}'

    assert run_program("critic", script=reply, stdin=b"Lamps are red.")[0]["score"] == 2
    assert seen[0] == "Text: Lamps are red."
    with pytest.raises(SyscallError, match="none to review"):
        run_program("critic", stdin=b" ")
