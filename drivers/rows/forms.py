"""From records to rows: which fields each objective reads, and what they must hold.

Owns the forms of rows. Refuses to know files (`records.py`) and sets of rows (`checks.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

from llmos.drivers.rows.chat_forms import conversation, messages_of, prompt_of, tools_of
from llmos.drivers.rows.fields import filled, label_of, name_in, text_of, texts_of
from llmos.drivers.rows.kinds import (
    ChatRow,
    LabelledRow,
    PairRow,
    PreferRow,
    Row,
    TaggedRow,
    TextRow,
)
from llmos.drivers.rows.problems import refused
from llmos.drivers.rows.records import Record
from llmos.syscalls.content import Message
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonObject

TEXT_NAMES = ("text", "sentence", "utterance", "query", "question", "content")
LABEL_NAMES = ("label", "category", "intent", "class", "target")
TOKEN_NAMES = ("tokens", "words")
TAG_NAMES = ("tags", "ner_tags", "labels", "bio")
ANCHOR_NAMES = ("text", "anchor", "query", "question", "sentence1")
POSITIVE_NAMES = ("positive", "answer", "passage", "sentence2")

_TAG = re.compile(r"O|[BI]-\S+")


def row_of(record: Record, objective: str, *, group_field: str | None = None) -> Row:
    """A record as a row of its objective.

    Raises: SyscallError("invalid") naming the record and the field.
    """
    maker = _MAKERS.get(objective)
    if maker is None:
        raise SyscallError(
            "invalid",
            f"objective: {objective!r} is none of {', '.join(_MAKERS)}",
            field="objective",
        )
    row = maker(record.fields, record.origin)
    group = record.group if group_field is None else _group(record, group_field)
    return row if group is None else row._replace(group=group)


def _group(record: Record, field: str) -> str:
    value: Any = record.fields.get(field)
    if isinstance(value, str | int) and str(value).strip():
        return str(value)
    has = ", ".join(record.fields)
    raise refused(record.origin, field, f"names no group (text or a number); the row has {has}")


# --- language -------------------------------------------------------------------------------------


def _chat(fields: JsonObject, origin: str) -> ChatRow:
    messages = messages_of(fields, origin)
    last = len(messages) - 1
    if messages[-1].role != "assistant":
        raise refused(
            origin,
            f"messages.{last}.role",
            f"the last message is what the model learns to say: it must be the assistant's, "
            f"not the {messages[-1].role}'s",
        )
    if len(messages) == 1:
        raise refused(origin, "messages", "an answer alone teaches nothing: put a prompt first")
    if not messages[-1].text.strip() and not messages[-1].tool_requests:
        raise refused(origin, f"messages.{last}.content", "the answer is empty")
    _require_text(messages, origin)
    return ChatRow(messages, origin, tools=tools_of(fields, origin))


def _require_text(messages: tuple[Message, ...], origin: str) -> None:
    for index, message in enumerate(messages):
        if other := [part.type for part in message.parts if part.type != "text"]:
            raise refused(
                origin, f"messages.{index}.parts", f"only text can be learnt, not {other[0]}"
            )


def _text(fields: JsonObject, origin: str) -> TextRow:
    return TextRow(filled(fields, name_in(fields, TEXT_NAMES, origin), origin), origin)


def _prefer(fields: JsonObject, origin: str) -> PreferRow:
    """A prompt with a better and a worse answer; or two whole conversations that begin alike."""
    asked: tuple[Message, ...]
    if fields.get("messages") is not None:
        asked = conversation(fields["messages"], origin, "messages")
    elif fields.get("prompt") is not None:
        asked = prompt_of(fields["prompt"], origin)
    else:
        chosen = conversation(fields.get("chosen"), origin, "chosen")
        rejected = conversation(fields.get("rejected"), origin, "rejected")
        if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
            raise refused(
                origin, "rejected", "without a prompt, both must begin alike and differ in the end"
            )
        asked = chosen[:-1]
    _require_text(asked, origin)
    better, worse = _answer(fields, "chosen", origin), _answer(fields, "rejected", origin)
    if better == worse:
        raise refused(origin, "rejected", "the same as chosen, so there is nothing to prefer")
    return PreferRow(asked, better, worse, origin, tools=tools_of(fields, origin))


def _answer(fields: JsonObject, name: str, origin: str) -> str:
    value: Any = fields.get(name)
    if not isinstance(value, list):
        return filled(fields, name, origin)
    last = conversation(cast("list[Any]", value), origin, name)[-1]
    if last.role != "assistant" or not last.text.strip():
        raise refused(origin, name, "must end with an answer of the assistant's")
    return last.text


# --- labels ---------------------------------------------------------------------------------------


def _labelled(fields: JsonObject, origin: str) -> LabelledRow:
    text = filled(fields, name_in(fields, TEXT_NAMES, origin), origin)
    return LabelledRow(text, label_of(fields, name_in(fields, LABEL_NAMES, origin), origin), origin)


def _tagged(fields: JsonObject, origin: str) -> TaggedRow:
    tokens = texts_of(fields, name_in(fields, TOKEN_NAMES, origin), origin)
    name = name_in(fields, TAG_NAMES, origin)
    tags = texts_of(fields, name, origin)
    if len(tokens) != len(tags):
        raise refused(origin, name, f"{len(tags)} tags for {len(tokens)} tokens")
    for index, (token, tag) in enumerate(zip(tokens, tags, strict=True)):
        if not token.strip():
            raise refused(origin, f"tokens.{index}", "blank; a token has at least one character")
        if not _TAG.fullmatch(tag):
            raise refused(
                origin,
                f"{name}.{index}",
                f"{tag!r} is no BIO label: those are O, B-KIND at an entity's first word and "
                "I-KIND at the others",
            )
    return TaggedRow(tokens, tags, origin)


def _pair(fields: JsonObject, origin: str) -> PairRow:
    anchor = filled(fields, name_in(fields, ANCHOR_NAMES, origin), origin)
    positive = filled(fields, name_in(fields, POSITIVE_NAMES, origin), origin)
    negative = None
    if fields.get("negative") not in (None, ""):
        negative = text_of(fields, "negative", origin)
        if negative == positive:
            raise refused(origin, "negative", "the same as positive")
    return PairRow(anchor, positive, negative, origin)


_MAKERS: dict[str, Callable[[JsonObject, str], Row]] = {
    "instruct": _chat,
    "pretrain": _text,
    "prefer": _prefer,
    "classify": _labelled,
    "tag": _tagged,
    "embed": _pair,
}
OBJECTIVES = tuple(_MAKERS)
