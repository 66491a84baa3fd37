"""The rows that a learning loop learns from: which attempts are kept, and how many of each kind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from llmos.syscalls.values import JsonObject


class LearnRow(NamedTuple):
    """A right attempt; as a line of JSON it is a row of instruction data.

    `tools` are those that were offered, as functions in OpenAI's form.
    """

    task: str
    kind: str
    said: str
    messages: list[JsonObject]
    tools: tuple[JsonObject, ...] = ()


def kept(episodes: Sequence[JsonObject], earlier: Sequence[LearnRow]) -> list[LearnRow]:
    """What is worth learning: each task's first right attempt, unless the task is known already."""
    known = {row.task for row in earlier}
    rows: dict[str, LearnRow] = {}
    for one in episodes:
        if one["reward"] > 0 and one["task"] not in known:
            tools = tuple(one.get("tools", ()))
            row = LearnRow(one["task"], one["kind"], one["said"], one["messages"], tools)
            rows.setdefault(row.task, row)
    return list(rows.values())


def balanced(rows: Sequence[LearnRow], share: float) -> list[LearnRow]:
    """The rows without the oldest ones of kinds that have more than a share of them, in order.

    Where there are too few kinds for that, each may have its equal part.
    """
    count = Counter(row.kind for row in rows)
    most = int(max(share, 1 / max(1, len(count))) * len(rows)) + 1
    spare = {kind: max(0, number - most) for kind, number in count.items()}
    left: list[LearnRow] = []
    for row in rows:
        if spare[row.kind]:
            spare[row.kind] -= 1
        else:
            left.append(row)
    return left


def written(rows: Sequence[LearnRow]) -> str:
    """Rows as lines of JSON."""
    return "".join(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows)


def read(text: str) -> list[LearnRow]:
    """The inverse of `written`."""
    rows: list[JsonObject] = [json.loads(line) for line in _lines(text)]
    return [LearnRow(**row)._replace(tools=tuple(row.get("tools", ()))) for row in rows]


def from_traces(text: str) -> list[JsonObject]:
    """Rows that were made of traces, as episodes that were right; the kind says where from."""
    episodes: list[JsonObject] = []
    for line in _lines(text):
        row: JsonObject = json.loads(line)
        messages: list[JsonObject] = row["messages"]
        asked = [message for message in messages[:-1] if message["role"] == "user"]
        episodes.append(
            {
                "task": _text(asked[-1]) if asked else "",
                "kind": "traces",
                "said": _text(messages[-1]),
                "reward": 1.0,
                "messages": messages,
                "tools": row.get("tools", []),
            }
        )
    return episodes


def _lines(text: str) -> list[str]:
    """Lines of JSON: a text in one may hold what `splitlines` takes for an end of line."""
    return [line for line in text.split("\n") if line]


def _text(message: JsonObject) -> str:
    content = message["content"]
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
