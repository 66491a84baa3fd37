"""Words of a text, and the entities that their BIO labels make.

Pure. A text is split as the corpora of entity recognition are: words keep their apostrophes and
hyphens, names and tags of social media and addresses of the web are one word, and any other
character stands alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from llmos.syscalls.learning_results import Entity, TaggedText

_WORD = re.compile(
    r"https?://\S+|www\.\S+"  # addresses
    r"|[@#]\w+"  # names and tags
    r"|\w+(?:[.,:]\d+)+"  # numbers with their points
    r"|\w+(?:['’\-]\w+)*"  # words
    r"|\S"
)


class Words(NamedTuple):
    """A text in words. `spans` are where each begins and ends in the text."""

    text: str
    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


def words_of(text: str | Sequence[str]) -> Words:
    """The words of a text; those of a sentence that is split already are joined by spaces."""
    if isinstance(text, str):
        found = list(_WORD.finditer(text))
        return Words(text, tuple(one[0] for one in found), tuple(one.span() for one in found))
    spans: list[tuple[int, int]] = []
    start = 0
    for word in text:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return Words(" ".join(text), tuple(text), tuple(spans))


def tagged_text(words: Words, tags: Sequence[tuple[str, float]]) -> TaggedText:
    """A text with the entities that its words' BIO labels make."""
    labels = tuple(label for label, _ in tags)
    scores = tuple(score for _, score in tags)
    return TaggedText(
        text=words.text,
        words=words.words,
        tags=labels,
        scores=scores,
        entities=tuple(
            _entity(words, kind, first, last, scores) for kind, first, last in _runs(labels)
        ),
    )


def _runs(labels: Sequence[str]) -> list[tuple[str, int, int]]:
    """The kind, the first and the last word of each entity."""
    found: list[tuple[str, int, int]] = []
    for place, label in enumerate(labels):
        prefix, _, kind = label.partition("-")
        if not kind:
            continue
        goes_on = prefix == "I" and found and found[-1][::2] == (kind, place - 1)
        if goes_on:
            found[-1] = (kind, found[-1][1], place)
        else:
            found.append((kind, place, place))
    return found


def _entity(words: Words, kind: str, first: int, last: int, scores: Sequence[float]) -> Entity:
    start, end = words.spans[first][0], words.spans[last][1]
    return Entity(
        text=words.text[start:end],
        label=kind,
        start=start,
        end=end,
        first=first,
        last=last,
        score=sum(scores[first : last + 1]) / (last + 1 - first),
    )
