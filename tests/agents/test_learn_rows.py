"""Which attempts a loop learns from."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmos.agents.learn_rows import LearnRow, balanced, from_traces, kept, read, written


def episode(task: str, said: str, reward: float) -> dict[str, Any]:
    return {"task": task, "kind": "k", "said": said, "reward": reward, "messages": []}


def rows(kinds: list[str]) -> list[LearnRow]:
    return [LearnRow(f"task {i}", kind, "said", []) for i, kind in enumerate(kinds)]


def test_only_right_attempts_are_kept_and_one_of_a_task() -> None:
    found = kept(
        [episode("a", "wrong", 0.0), episode("a", "x", 1.0), episode("a", "y", 1.0)], earlier=[]
    )
    assert [row.said for row in found] == ["x"]


def test_a_task_that_was_learned_before_is_not_kept_again() -> None:
    assert not kept([episode("a", "x", 1.0)], [LearnRow("a", "k", "y", [])])


def test_rows_are_read_as_they_were_written() -> None:
    before = [
        LearnRow("a \u00e9", "k", "x\n", [{"role": "user"}]),
        LearnRow("b\u2028c", "k", "\x85", [], ({"type": "function"},)),
    ]
    assert read(written(before)) == before


def test_what_traces_say_of_tools_is_learned_with_them() -> None:
    messages = [{"role": "user", "content": "a\u2028b"}, {"role": "assistant", "content": "c"}]
    tools = [{"type": "function", "function": {"name": "add"}}]
    line = json.dumps({"messages": messages, "tools": tools}, ensure_ascii=False)
    (row,) = kept(from_traces(f"{line}\n"), earlier=[])
    assert (row.task, row.said, list(row.tools)) == ("a\u2028b", "c", tools)


@given(st.lists(st.sampled_from("abcd"), max_size=60), st.floats(0.05, 1.0))
def test_no_kind_has_much_more_than_its_share(kinds: list[str], share: float) -> None:
    found = balanced(rows(kinds), share)
    most = max(share, 1 / max(1, len(set(kinds)))) * len(kinds) + 1
    assert all(number <= most for number in Counter(row.kind for row in found).values())
    assert [row for row in rows(kinds) if row in found] == found


def test_the_oldest_of_a_frequent_kind_go() -> None:
    found = balanced(rows(["a"] * 8 + ["b", "c"]), 0.4)
    assert [row.task for row in found] == [f"task {i}" for i in range(3, 10)]
