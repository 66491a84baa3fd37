"""Instruction rows: read, checked, rendered to tokens, split and batched.

Owns what a training row may look like and which of its tokens are targets: those of the last
message, which the assistant says, with the token that ends its turn. Whatever is cut or left out is
counted and named. Refuses to know models, gradients and devices; needs no torch.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from pydantic import ValidationError

from llmos.syscalls.content import Message, assistant, user
from llmos.syscalls.errors import SyscallError, invalid
from llmos.syscalls.values import JsonObject

FORMS = '{"messages": [...]}, {"instruction", "input", "output"} or {"prompt", "completion"}'


class Chat(Protocol):
    """How the model that trains reads conversations when it serves."""

    def render(self, messages: Sequence[Message], /) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer."""
        ...

    def tokenize(self, text: str, /) -> list[int]:
        """Token ids of a text, none of it read as markup."""
        ...

    @property
    def end_token(self) -> int:
        """The token by which the model ends its answer."""
        ...


class Row(NamedTuple):
    """A conversation whose last message is the target, and where it came from."""

    messages: tuple[Message, ...]
    origin: str  # "file.jsonl:12" or "row 12"


class EncodedRow(NamedTuple):
    """A row as tokens; the first `prompt_tokens` of them (at least one) are not targets."""

    tokens: tuple[int, ...]
    prompt_tokens: int
    origin: str

    @property
    def target_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows within a length limit, and what the limit cost."""

    rows: tuple[EncodedRow, ...]
    truncated: tuple[str, ...]  # origins of rows whose answer lost its end
    skipped: tuple[str, ...]  # origins of rows that are left out: no answer token fits


# --- reading --------------------------------------------------------------------------------------


def read_rows(path: Path, *, name: str | None = None) -> list[Row]:
    """Read and check a JSONL file of rows; blank lines are passed over.

    `name` is what errors call the file; without one they count rows. Raises: SyscallError:
    "not_found", "storage", or "invalid" with the file, line and field.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as problem:
        raise SyscallError(
            "not_found", f"there is no data file {path}", what="file", name=str(path)
        ) from problem
    except OSError as problem:
        raise SyscallError(
            "storage", f"the data file {path} cannot be read: {problem}", path=str(path)
        ) from problem
    rows = [
        _read_row(line, f"{name}:{number}" if name else f"row {number}")
        for number, line in enumerate(data.split(b"\n"), start=1)
        if line.strip()
    ]
    if not rows:
        raise SyscallError("invalid", f"data: {name or 'the list'} holds no rows", field="data")
    return rows


def _read_row(line: bytes, origin: str) -> Row:
    try:
        row: Any = json.loads(line)
    except UnicodeDecodeError as problem:
        raise _refused(origin, "(line)", f"not UTF-8: {problem.reason}") from problem
    except ValueError as problem:
        raise _refused(origin, "(line)", f"not JSON: {problem}") from problem
    if not isinstance(row, dict):
        raise _refused(origin, "(line)", f"not a JSON object but {type(row).__name__}")
    messages = _messages_of(cast(JsonObject, row), origin)
    _check(messages, origin)
    return Row(messages, origin)


def _messages_of(row: JsonObject, origin: str) -> tuple[Message, ...]:
    """The conversation that a row of any known form stands for."""
    forms = [form for form in ("messages", "instruction", "prompt") if form in row]
    if len(forms) != 1:
        found = " and ".join(forms) or "none of their fields"
        raise _refused(origin, "(line)", f"a row is one of {FORMS}; this one has {found}")
    if forms == ["messages"]:
        said: Any = row["messages"]
        if not isinstance(said, list) or not said:
            raise _refused(origin, "messages", "must be a list of at least one message")
        items = cast("list[Any]", said)
        return tuple(_message_of(item, origin, f"messages.{i}") for i, item in enumerate(items))
    if forms == ["prompt"]:
        return user(_text(row, "prompt", origin)), assistant(_text(row, "completion", origin))
    question = _text(row, "instruction", origin)
    if row.get("input") not in (None, ""):
        question += "\n\n" + _text(row, "input", origin)
    return user(question), assistant(_text(row, "output", origin))


def _message_of(item: Any, origin: str, field: str) -> Message:
    """A message in the common form (role and content text) or in the ABI's own form."""
    if not isinstance(item, dict):
        raise _refused(origin, field, f"must be an object but is {type(item).__name__}")
    fields = dict(cast(JsonObject, item))
    if "content" in fields:
        text = _text(fields, "content", origin, f"{field}.content")
        del fields["content"]
        fields["parts"] = [{"type": "text", "text": text}]
    try:
        return Message.model_validate_json(json.dumps(fields))
    except ValidationError as problem:
        error = invalid(problem)
        inner = str(error.fields["field"])
        why = error.message.removeprefix(f"{inner}: ")
        raise _refused(origin, f"{field}.{inner}", why) from problem


def _text(fields: JsonObject, name: str, origin: str, shown_as: str | None = None) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        found = "missing" if value is None else f"not text but {type(value).__name__}"
        raise _refused(origin, shown_as or name, found)
    return value


def _check(messages: tuple[Message, ...], origin: str) -> None:
    last = len(messages) - 1
    if messages[-1].role != "assistant":
        raise _refused(
            origin,
            f"messages.{last}.role",
            f"the last message is what the model learns to say: it must be the assistant's, "
            f"not the {messages[-1].role}'s",
        )
    if len(messages) == 1:
        raise _refused(origin, "messages", "an answer alone teaches nothing: put a prompt first")
    if not messages[-1].text.strip():
        raise _refused(origin, f"messages.{last}.content", "the answer is empty")
    if messages[-1].tool_requests:
        raise _refused(
            origin,
            f"messages.{last}.tool_requests",
            "an answer of text can be learnt, not requests",
        )
    for index, message in enumerate(messages):
        if other := [part.type for part in message.parts if part.type != "text"]:
            raise _refused(
                origin, f"messages.{index}.parts", f"only text can be learnt, not {other[0]}"
            )


def _refused(origin: str, field: str, why: str) -> SyscallError:
    return SyscallError("invalid", f"{origin}: {field}: {why}", field=field, origin=origin)


# --- tokens ---------------------------------------------------------------------------------------


def encode_rows(rows: Sequence[Row], chat: Chat, *, max_length_tokens: int) -> EncodedRows:
    """Render rows and cut each to its first `max_length_tokens`.

    A row cut inside its answer is kept and named in `truncated`; one whose answer is cut off
    entirely is left out and named in `skipped`.
    """
    kept: list[EncodedRow] = []
    truncated: list[str] = []
    skipped: list[str] = []
    for row in rows:
        encoded = encode_row(row, chat)
        if encoded.prompt_tokens >= max_length_tokens:
            skipped.append(row.origin)
            continue
        if len(encoded.tokens) > max_length_tokens:
            truncated.append(row.origin)
            encoded = encoded._replace(tokens=encoded.tokens[:max_length_tokens])
        kept.append(encoded)
    return EncodedRows(tuple(kept), tuple(truncated), tuple(skipped))


def encode_row(row: Row, chat: Chat) -> EncodedRow:
    """The tokens of a row, the answer's apart from the prompt's as when the model generates it."""
    prompt = chat.render(row.messages[:-1])
    answer = chat.tokenize(row.messages[-1].text)
    return EncodedRow((*prompt, *answer, chat.end_token), len(prompt), row.origin)


# --- split and batches ----------------------------------------------------------------------------


def split_rows(rows: Sequence[Row], *, share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Divide rows into (training, held out); the same rows, share and seed divide the same.

    Equal conversations fall on the same side, so that nothing held out is trained on. A share over
    zero holds out at least one row; at least one is left to train. Raises: SyscallError("invalid")
    when a share over zero cannot be held out because all rows are equal.
    """
    if share <= 0:
        return list(rows), []
    groups: dict[tuple[Message, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.messages, []).append(row)
    if len(groups) < 2:
        raise SyscallError(
            "invalid",
            "eval_share: holding rows out needs at least two different rows; give more data or "
            "set it to 0",
            field="eval_share",
        )
    wanted = max(1, round(share * len(rows)))
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    held_out: list[Row] = []
    while len(held_out) < wanted and len(order) > 1:
        held_out += order.pop()
    return [row for group in order for row in group], held_out


def shuffled_batches(
    rows: Sequence[EncodedRow], *, batch_size: int, seed: int
) -> Iterator[list[EncodedRow]]:
    """Batches of all rows, epoch after epoch without end, in a new order each epoch."""
    order = random.Random(seed)
    while True:
        epoch = list(rows)
        order.shuffle(epoch)
        yield from batches(epoch, batch_size=batch_size)


def batches(rows: Sequence[EncodedRow], *, batch_size: int) -> Iterator[list[EncodedRow]]:
    """Batches of the rows in order; the last may be smaller."""
    for start in range(0, len(rows), batch_size):
        yield list(rows[start : start + batch_size])
