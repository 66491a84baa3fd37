"""Rows of episodes: what is chosen, paired and left out."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.rows.redaction import PatternRedactor
from llmos.memory.episodes import Episode
from llmos.memory.trace_rows import TraceRowSet, compose
from llmos.syscalls.content import FilePart, Message, ToolRequest, assistant, user

SCORES = st.none() | st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])


def episode(number: int = 1, **changes: Any) -> Episode:
    fields: dict[str, Any] = {
        "id": number,
        "namespace": "ann",
        "program": "p",
        "task": "t",
        "model": "m",
        "adapter": None,
        "at": 0.0,
        "messages": (user("Who?"),),
        "tools": (),
        "answer": assistant("Ann"),
        "finish": "stop",
        "score": 1.0,
        **changes,
    }
    return Episode(**fields)


def made(*episodes: Episode, objective: Any = "instruct", **options: Any) -> TraceRowSet:
    options = {"min_score": None, "redactor": None, "is_deduped": True, **options}
    return compose(episodes, objective, **options)


def rows_of(found: TraceRowSet) -> list[Any]:
    return [json.loads(line) for line in found.lines]


_EPISODES = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.sampled_from("12"), SCORES),
    max_size=20,
).map(
    lambda made: [
        episode(i, messages=(user(asked),), answer=assistant(said), task=task, score=score)
        for i, (asked, said, task, score) in enumerate(made)
    ]
)


@given(_EPISODES, SCORES)
def test_every_episode_is_a_row_or_is_counted(
    episodes: list[Episode], min_score: float | None
) -> None:
    found = made(*episodes, min_score=min_score)
    rows = rows_of(found)
    below = sum(
        min_score is not None and (one.score is None or one.score < min_score) for one in episodes
    )
    assert len(rows) + found.left_out["duplicate"] + below >= len(episodes)
    asked = [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows]
    assert max(Counter(asked).values(), default=1) == 1
    assert min_score is None or all(row["score"] >= min_score for row in rows)


@given(_EPISODES)
def test_of_equal_episodes_the_best_judged_is_kept(episodes: list[Episode]) -> None:
    best: dict[tuple[str, str], float] = {}
    for one in episodes:
        key = (one.messages[0].text, one.answer.text)
        best[key] = max(
            best.get(key, float("-inf")), one.score if one.score is not None else float("-inf")
        )
    rows = rows_of(made(*episodes))
    kept = {
        (row["messages"][0]["content"], row["messages"][1]["content"]): row["score"] for row in rows
    }
    assert {key: float("-inf") if s is None else s for key, s in kept.items()} == best


@given(_EPISODES)
def test_a_pair_prefers_the_better_of_two_answers_to_one_prompt(episodes: list[Episode]) -> None:
    by_id = {one.id: one for one in episodes}
    found = made(*episodes, objective="prefer", is_deduped=False)
    groups: set[tuple[str, str]] = set()
    for row in rows_of(found):
        better, worse = by_id[row["episode"]], by_id[row["rejected_episode"]]
        assert better.messages == worse.messages and better.task == worse.task
        assert better.score is not None and worse.score is not None
        assert better.score > worse.score
        assert (row["chosen"], row["rejected"]) == (better.answer.text, worse.answer.text)
        assert (better.task, better.messages[0].text) not in groups
        groups.add((better.task, better.messages[0].text))
    assert 2 * len(found.lines) + found.left_out["unpaired"] == len(episodes)


def test_what_cannot_be_learnt_from_is_left_out_by_reason() -> None:
    found = made(
        episode(1, finish="length"),
        episode(2, answer=assistant(" ")),
        episode(3, messages=(Message(role="user", parts=(FilePart(path="a.png"),)),)),
        episode(4),
    )
    assert len(found.lines) == 1
    assert found.left_out == {"cut": 1, "empty": 1, "no text": 1}


def test_answers_that_ask_for_tools_are_compared_by_what_they_ask() -> None:
    def asking(number: int, a: int) -> Episode:
        request = ToolRequest(id=str(number), name="add", arguments={"a": a})
        answer = Message(role="assistant", tool_requests=(request,))
        return episode(number, answer=answer, finish="tool_requests", score=float(a))

    found = made(asking(1, 1), asking(2, 1), asking(3, 0), objective="prefer")
    (row,) = rows_of(found)
    assert '"a": 1' in row["chosen"] and '"a": 0' in row["rejected"]
    assert found.left_out == {"duplicate": 1}


def test_both_answers_of_a_pair_are_redacted() -> None:
    found = made(
        episode(1, answer=assistant("me@example.org")),
        episode(2, answer=assistant("you@example.org"), score=0.0),
        objective="prefer",
        redactor=PatternRedactor(),
    )
    assert "@" not in found.lines[0]
    assert found.redacted == {"email": 2}


def test_the_same_episodes_give_the_same_file() -> None:
    assert made(episode(1), episode(2)).digest == made(episode(1), episode(2)).digest
    assert made(episode(1)).digest != made(episode(1, answer=assistant("Bob"))).digest
