"""The kinds of training rows: one per objective, each knowing where it came from.

Owns the values that readers make and that objectives encode. Refuses to know files, tokenizers and
models; needs no torch.
"""

from __future__ import annotations

from typing import NamedTuple

from llmos.syscalls.content import Message
from llmos.syscalls.results import ToolSpec


class ChatRow(NamedTuple):
    """A conversation whose last message is what the model learns to say (`instruct`).

    That message holds text, tool requests or both; `tools` are those offered in the conversation.
    """

    messages: tuple[Message, ...]
    origin: str  # "file.jsonl:12" or "row 12"
    group: str | None = None  # rows of one group stay on one side of a split
    tools: tuple[ToolSpec, ...] = ()


class TextRow(NamedTuple):
    """Raw text that a language model learns to continue (`pretrain`)."""

    text: str
    origin: str
    group: str | None = None


class LabelledRow(NamedTuple):
    """A text of one class (`classify`)."""

    text: str
    label: str
    origin: str
    group: str | None = None


class TaggedRow(NamedTuple):
    """A sentence in words, each with a BIO label: "O", "B-kind" or "I-kind" (`tag`)."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]  # as many as tokens
    origin: str
    group: str | None = None


class PreferRow(NamedTuple):
    """A conversation with an answer that is better and one that is worse (`prefer`)."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    origin: str
    group: str | None = None
    tools: tuple[ToolSpec, ...] = ()


class PairRow(NamedTuple):
    """A text, one that belongs beside it and perhaps one that does not (`embed`)."""

    text: str
    positive: str
    negative: str | None
    origin: str
    group: str | None = None


Row = ChatRow | TextRow | LabelledRow | TaggedRow | PreferRow | PairRow
