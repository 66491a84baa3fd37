"""What a row says, apart from where it stands: for equality, similarity, labels and statistics."""

from __future__ import annotations

import hashlib
from typing import assert_never

from llmos.drivers.rows.kinds import (
    ChatRow,
    LabelledRow,
    PairRow,
    PreferRow,
    Row,
    TaggedRow,
    TextRow,
)
from llmos.drivers.tool_text import write_answer
from llmos.syscalls.content import Message

_OUTSIDE = "O"


def text_of_row(row: Row) -> str:
    """All text of a row, as a person would read it."""
    match row:
        case ChatRow():
            return _spoken(row.messages)
        case TextRow() | LabelledRow():
            return row.text
        case TaggedRow():
            return " ".join(row.tokens)
        case PreferRow():
            return "\n".join((_spoken(row.messages), row.chosen, row.rejected))
        case PairRow():
            return "\n".join(part for part in (row.text, row.positive, row.negative) if part)
        case _:
            assert_never(row)


def telling_text(row: Row) -> str:
    """The text by which a row is like another: that of a system message is shared by most."""
    if isinstance(row, ChatRow | PreferRow):
        said = tuple(message for message in row.messages if message.role != "system")
        return text_of_row(row._replace(messages=said))
    return text_of_row(row)


def identity(row: Row) -> bytes:
    """A digest that rows share when a model would be asked the same; labels do not count."""
    match row:
        case ChatRow():
            content = [message.model_dump_json() for message in row.messages]
        case PreferRow():
            content = [message.model_dump_json() for message in row.messages]
            content += [row.chosen, row.rejected]
        case TextRow() | LabelledRow():
            content = [row.text]
        case TaggedRow():
            content = list(row.tokens)
        case PairRow():
            content = [row.text, row.positive, row.negative or ""]
        case _:
            assert_never(row)
    digest = hashlib.sha256()
    for part in content:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def labels_of(row: Row) -> tuple[str, ...]:
    """The classes of a row: its label, or the kinds of its entities; empty where it has none."""
    match row:
        case LabelledRow():
            return (row.label,)
        case TaggedRow():
            return tuple(sorted({tag[2:] for tag in row.tags if tag != _OUTSIDE}))
        case _:
            return ()


def _spoken(messages: tuple[Message, ...]) -> str:
    return "\n".join(write_answer(message) for message in messages)
