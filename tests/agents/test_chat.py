"""The chat program: one context, a streamed answer for each line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SCRIPT = {"hello": "Good day.", "again": "Still here.", "one": "Single."}


def test_each_line_is_answered_until_input_ends(run_program: Callable[..., Any]) -> None:
    turns, output = run_program("chat", script=SCRIPT, stdin=b"hello\n\nagain\n")
    assert (turns, output) == (2, "Good day.\nStill here.\n")


def test_a_last_line_without_an_end_is_answered_too(run_program: Callable[..., Any]) -> None:
    assert run_program("chat", script=SCRIPT, stdin=b"one")[1] == "Single.\n"


def test_a_line_that_is_too_long_is_refused_and_the_next_is_answered(
    run_program: Callable[..., Any],
) -> None:
    turns, output = run_program(
        "chat", script=SCRIPT, stdin=b"x" * 5000 + b"\nhello\n", max_tokens=50
    )
    assert turns == 1
    refusal, answer = output.splitlines()
    assert refusal.startswith("context_overflow")
    assert answer == "Good day."


def test_the_system_message_is_the_callers(run_program: Callable[..., Any]) -> None:
    said: list[str] = []

    def script(text: str) -> str:
        said.append(text)
        return "Aye."

    assert run_program("chat", system="Talk as a pirate.", script=script, stdin=b"hi\n")[0] == 1
    assert said[-1] == "hi"
