"""Rows as JSON lines, in a form that `reading.py` reads back to the same rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import assert_never

from llmos.drivers.rows.chat_forms import to_openai, tool_to_openai
from llmos.drivers.rows.kinds import (
    ChatRow,
    LabelledRow,
    PairRow,
    PreferRow,
    Row,
    TaggedRow,
    TextRow,
)
from llmos.syscalls.values import JsonObject

GROUP = "group"  # the field of a row's group


def to_json(row: Row) -> JsonObject:
    """A row's fields; where it came from is not among them."""
    match row:
        case ChatRow():
            fields: JsonObject = {"messages": [to_openai(message) for message in row.messages]}
        case TextRow():
            fields = {"text": row.text}
        case LabelledRow():
            fields = {"text": row.text, "label": row.label}
        case TaggedRow():
            fields = {"tokens": list(row.tokens), "tags": list(row.tags)}
        case PreferRow():
            fields = {
                "messages": [to_openai(message) for message in row.messages],
                "chosen": row.chosen,
                "rejected": row.rejected,
            }
        case PairRow():
            fields = {"text": row.text, "positive": row.positive}
            if row.negative is not None:
                fields["negative"] = row.negative
        case _:
            assert_never(row)
    if isinstance(row, ChatRow | PreferRow) and row.tools:
        fields["tools"] = [tool_to_openai(tool) for tool in row.tools]
    if row.group is not None:
        fields[GROUP] = row.group
    return fields


def write_rows(rows: Iterable[Row], path: Path) -> int:
    """Write rows to a file, a line each; how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(to_json(row), ensure_ascii=False) + "\n")
            count += 1
    return count
