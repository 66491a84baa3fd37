"""Answers that stand on sources: numbered sources, quotes from them, citations that are checked.

A quote is a whole sentence of a source, chosen by the model: its answer is constrained to be one of
the sentences nearest to the question. What a model writes freely is checked against what it cites.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmos.agents.handle import OS
from llmos.agents.prompts import prompt
from llmos.agents.shots import nearness
from llmos.agents.text import sentences
from llmos.syscalls.options import ChoiceConstraint
from llmos.syscalls.results import Hit
from llmos.syscalls.values import JsonObject

# Shorter ones are headings, longer ones are no sentences or cost too much to choose from.
_SENTENCE_CHARS = range(25, 301)
# A statement in prose: no code, no data, no question.
_STATEMENT = re.compile(r"[A-Za-z\"'(][^{}<>\\=]*[.!]")
_CITATION = re.compile(r"\s*\[(\d+)\]")
_CITED_SENTENCE = re.compile(
    r"\s*(?P<text>[^\[\]]+?)(?P<marks>(?:\s*\[\d+\])*)(?P<end>[.!?])(?=\s|$)"
)
_WORD = re.compile(r"[a-z0-9_]{4,}")
_QUOTE_TOKENS = 200
# What places in files are counted in, as `Ingest` writes it in a note's metadata.
_UNITS = ("line", "page", "row", "paragraph")


class Quote(NamedTuple):
    """A sentence of a source, and which of the hits it stands in."""

    text: str
    hit: Hit


class Cited(NamedTuple):
    """A text whose citations hold, and what had to be taken out of it and why."""

    text: str
    used: tuple[int, ...]
    dropped: tuple[str, ...]


async def nearest_sentences(
    os: OS, question: str, hits: Sequence[Hit], *, count: int, margin: float = 2.0
) -> dict[str, Hit]:
    """The statements in some hits that are nearest in meaning to a question, nearest first.

    `margin` is how much less near than the first, as a difference of cosines, the others may be.
    """
    origin: dict[str, Hit] = {}
    for hit in hits:
        for sentence in sentences(hit.text):
            if len(sentence) in _SENTENCE_CHARS and _STATEMENT.fullmatch(sentence):
                origin.setdefault(sentence, hit)
    if not origin:
        return {}
    near = dict(zip(origin, await nearness(os, question, list(origin)), strict=True))
    ranked = sorted(near, key=lambda sentence: -near[sentence])[:count]
    return {one: origin[one] for one in ranked if near[ranked[0]] - near[one] <= margin}


async def quote(
    os: OS,
    question: str,
    hits: Sequence[Hit],
    *,
    candidates: int = 3,
    margin: float = 0.12,
    model: str | None = None,
) -> Quote | None:
    """The sentence that answers a question best in the model's eyes; None when there is none.

    Choices are the `candidates` sentences nearest in meaning to the question. One that is nearer
    than all others by more than `margin` is taken without asking: embeddings are then the better
    judge than a small model.
    """
    near = await nearest_sentences(os, question, hits, count=candidates, margin=margin)
    if len(near) <= 1:
        return next((Quote(text, hit) for text, hit in near.items()), None)
    generated = await os.generate(
        prompt("quote").messages(text=" ".join(near), question=question),
        model=model,
        constraint=ChoiceConstraint(choices=tuple(near)),
        max_tokens=_QUOTE_TOKENS,
    )
    chosen = generated.text
    return Quote(chosen, near[chosen]) if chosen in near else None


def source_of(hit: Hit) -> JsonObject:
    """A hit as a source that a reader can look up: a file, the place in it, and the text."""
    places = (f"{unit} {hit.metadata[unit]}" for unit in _UNITS if unit in hit.metadata)
    return {"source": hit.source, "place": next(places, None), "text": hit.text}


def shown_source(source: JsonObject, folder: str | None = None) -> str:
    """A source in one line, its path from a folder on: "guide.md, line 4"."""
    path = str(source["source"])
    if folder is not None:
        path = path.removeprefix(f"{folder.rstrip('/')}/")
    return f"{path}, {source['place']}" if source["place"] else path


def checked(text: str, sources: Mapping[int, str], *, least_support: float = 0.85) -> Cited:
    """Keep the sentences of a text that their citations bear out.

    A citation of a number that is no source is taken out; a sentence is taken out when no citation
    is left, or when less than `least_support` of its words of four letters and more stand in what
    it cites.
    """
    kept: list[str] = []
    used: list[int] = []
    dropped: list[str] = []
    end = 0
    for match in _CITED_SENTENCE.finditer(text):
        end = match.end()
        sentence = match["text"].strip()
        numbers = [int(number) for number in _CITATION.findall(match["marks"])]
        real = [number for number in dict.fromkeys(numbers) if number in sources]
        dropped += [f"[{number}] is no source" for number in numbers if number not in sources]
        share = support(sentence, " ".join(sources[number] for number in real))
        if not real:
            dropped.append(f"no source is cited for: {sentence}")
        elif share < least_support:
            dropped.append(f"{share:.0%} of the words stand in what it cites: {sentence}")
        else:
            marks = "".join(f"[{number}]" for number in real)
            kept.append(f"{sentence} {marks}{match['end']}")
            used += [number for number in real if number not in used]
    if rest := text[end:].strip():
        dropped.append(f"it does not end as a sentence: {rest}")
    return Cited(" ".join(kept), tuple(used), tuple(dropped))


def support(sentence: str, source: str) -> float:
    """The share of a sentence's longer words that stand in a source; 1.0 when it has none."""
    words = set(_WORD.findall(sentence.lower()))
    return len(words & set(_WORD.findall(source.lower()))) / len(words) if words else 1.0
