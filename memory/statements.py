"""What was said, in pieces that can be found on their own.

A message often says several things, and its embedding is near to none of them. Measured on the
dialogues of `benchmarks/context.py`: of 128 planted facts, the 8 nearest notes held 62 % when a
note was a message and the whole next message was the query, and 95 % when a note was a sentence and
the query was the question in that message. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

PIECE_CHARS = 800  # about 200 tokens; embedding models read 256 or more
JOINED_CHARS = 200  # lines that are no sentences, and what leans on the sentence before
_ENDS = (".", "!", "?", "\u3002", "\uff01", "\uff1f")
_BREAK = re.compile(r"(?<=[.!?\u3002\uff01\uff1f])\s+|\n+")
# A sentence that begins so says of the one before.
_LEANS = re.compile(r"(?:it|its|he|she|his|her|they|their|this|these|those)\b", re.IGNORECASE)


def statements(text: str) -> Iterator[str]:
    """The sentences of a text, none over `PIECE_CHARS`.

    A sentence that begins with a pronoun stays with the one before it. Lines that are no sentences,
    of a list or of code, are joined.
    """
    held = ""
    for piece in _pieces(text):
        is_joined = not held.endswith(_ENDS) or _LEANS.match(piece)
        if held and is_joined and len(held) + len(piece) < JOINED_CHARS:
            held = f"{held} {piece}"
            continue
        if held:
            yield held
        held = piece
    if held:
        yield held


def asked(text: str, *, most_chars: int) -> str:
    """The questions in a text, or its end when it has none: what to look for in memory."""
    questions = [piece for piece in _pieces(text) if piece.endswith(("?", "\uff1f"))]
    return (" ".join(questions) or text.strip())[-most_chars:].strip()


def packed(text: str) -> Iterator[str]:
    """A text in as few pieces of at most `PIECE_CHARS` as its sentences allow."""
    held = ""
    for piece in _pieces(text):
        if held and len(held) + len(piece) >= PIECE_CHARS:
            yield held
            held = ""
        held = f"{held} {piece}".strip()
    if held:
        yield held


def _pieces(text: str) -> Iterator[str]:
    for sentence in _BREAK.split(text):
        words = " ".join(sentence.split())
        for start in range(0, len(words), PIECE_CHARS):
            yield words[start : start + PIECE_CHARS].strip()
