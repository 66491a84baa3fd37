"""Dialogue to facts: what a person said of themselves and their world, kept as facts.

Sentences that state something lasting are found by what they are near to in meaning. The model then
says where the relation stands in each: its answer is one of the ways to cut the sentence in three,
so a fact has the person's own words and nothing is made up. A fact that contradicts an older one
supersedes it; one that says the same is not stored again. At the end the namespace's profile, which
lists its current facts, is written anew.

Run by the kernel in idle time; also to be spawned by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llmos.agents.handle import OS
from llmos.agents.prompts import prompt
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import ChoiceConstraint
from llmos.syscalls.results import Fact
from llmos.syscalls.values import JsonObject

PROFILE = "consolidation:profile"  # the source of the note that lists the facts
PROFILE_FACTS = 20

# What lasts and what does not, as people say it: a sentence is a fact if it is nearer to one of the
# first. General statements, so that names and things in a sentence count for little.
_LASTING = (
    "My name is Alex.",
    "I live in a city.",
    "I was born in a small town.",
    "I work as a teacher.",
    "I work at a company.",
    "My favourite colour is red.",
    "I like music.",
    "I do not like coffee.",
    "I am allergic to milk.",
    "My sister is called Mary.",
    "My brother lives abroad.",
    "I have a dog.",
    "My cat is three years old.",
    "My car is a red van.",
    "I play the piano.",
    "I speak three languages.",
    "My birthday is in June.",
    "My phone number is 5550100.",
    "Our team meets on Mondays.",
    "The project is due in spring.",
    "My boss wants the report every week.",
    "The code of the door is 4711.",
    "The deadline is in two weeks.",
)
_PASSING = (
    "Thank you, that helps.",
    "Please write a poem.",
    "Tell me more about that.",
    "I see, that makes sense.",
    "I do not understand this.",
    "I have a question.",
    "I want to know how this works.",
    "Can you explain it again?",
    "Let us go on with the next one.",
    "Good morning, how are you?",
    "That is a good idea.",
    "I think that is wrong.",
    "I will try it now.",
    "I need help with this.",
    "It is raining today.",
    "I just had lunch.",
    "This example does not work.",
    "Summarise the text in one sentence.",
)
_LEAST_COSINE = 0.25  # less is near to nothing
_WORDS = range(3, 15)  # of a sentence that is cut in three; a longer one says more than one thing
_SENTENCE_END = re.compile(r"(?<=[^\d\s][.!?])\s+|\n+")
_ANSWER_TOKENS = 64
_BAR = " | "
_PRONOUNS = frozenset({"i", "we", "he", "she", "they", "it", "you"})  # a whole subject
_BEFORE_NOUNS = frozenset({"the", "a", "an", "my", "our", "his", "her", "their", "and", "of"})
_PREPOSITIONS = frozenset({"to", "in", "at", "for", "as", "from", "with", "on", "of", "by"})
_COPULAS = frozenset({"is", "are", "was", "were", "am"})
# What one has or does once at a time, by the first two words of the relation.
_SINGLE = frozenset(
    {"live in", "lives in", "live at", "work at", "works at", "work for", "works for", "work as"}
    | {"works as", "am called", "is called", "am a", "was born", "is due"}
)


class Said(NamedTuple):
    """A sentence, the note that it stands in, and when that was said."""

    text: str
    note: int
    at: float


async def consolidate(
    os: OS,
    *,
    namespace: str,
    notes: list[JsonObject],
    whose: str = "",
    model: str | None = None,
) -> JsonObject:
    """Make what a user said (`notes`: `{"id", "text", "at"}`) into facts of a namespace.

    `at` is when it was said, in seconds since the epoch: since then a fact is taken to be so.
    `whose` names the person, where several share the namespace: each has a profile of their own.
    Returns `{"sentences", "facts", "duplicates", "superseded", "is_complete"}`; it is not complete
    when a quota ended it, and what was found until then is kept.
    Raises: SyscallError.
    """
    counts = {"sentences": 0, "facts": 0, "duplicates": 0, "superseded": 0}
    is_complete = True
    try:
        candidates = await lasting(os, _sentences(notes))
        counts["sentences"] = len(candidates)
        for said in candidates:
            fact = await fact_of(os, said.text, model=model)
            if fact is not None:
                stored = await _remember(os, namespace, said, fact, whose)
                for key, count in stored.items():
                    counts[key] += count
    except SyscallError as problem:
        if problem.code != "quota_exceeded":
            raise
        is_complete = False
    if counts["facts"]:
        await _refresh_profile(os, namespace, whose)
    return {**counts, "is_complete": is_complete}


async def lasting(os: OS, sentences: Sequence[Said]) -> list[Said]:
    """Those of some sentences that state what lasts, by what they are near to in meaning."""
    if not sentences:
        return []
    embedded = await os.embed([*_LASTING, *_PASSING, *(said.text for said in sentences)])
    first, second = len(_LASTING), len(_LASTING) + len(_PASSING)
    kept: list[Said] = []
    for said, vector in zip(sentences, embedded.vectors[second:], strict=True):
        good = max(_cosine(vector, one) for one in embedded.vectors[:first])
        bad = max(_cosine(vector, one) for one in embedded.vectors[first:second])
        if good > max(bad, _LEAST_COSINE):
            kept.append(said)
    return kept


async def fact_of(os: OS, sentence: str, *, model: str | None = None) -> Fact | None:
    """The fact that a sentence states, cut where the model says; None where it cannot be cut."""
    choices = tuple(cuts(sentence))
    if not choices:
        return None
    if len(choices) == 1:
        chosen = choices[0]
    else:
        generated = await os.generate(
            prompt("fact").messages(sentence=sentence),
            model=model,
            constraint=ChoiceConstraint(choices=choices),
            max_tokens=_ANSWER_TOKENS,
        )
        chosen = generated.text
    parts = chosen.split(_BAR)
    if len(parts) != 3:  # cut short by `max_tokens`
        return None
    subject, relation, other = parts
    return Fact(
        subject=_named(subject),
        relation=relation.lower(),
        object=_named(other),
        is_single=_is_single(subject, relation),
    )


def cuts(sentence: str) -> Iterator[str]:
    """The ways to cut a sentence into subject, relation and object, with bars between them.

    Not between a word and the noun that it belongs to, nor before a preposition. A relation with an
    article goes on to a preposition ("am a nurse at"); a pronoun is a whole subject, and a copula
    stands in no relation's middle.
    """
    words = sentence.rstrip(".!").split()
    lower = [word.lower() for word in words]
    most = 2 if lower[0] in _PRONOUNS else 7
    for start in range(1, min(len(words) - 1, most)):
        if lower[start - 1] in _BEFORE_NOUNS or lower[start] in _BEFORE_NOUNS | _PREPOSITIONS:
            continue
        if _COPULAS & set(lower[:start]):
            continue
        for end in range(start + 1, min(len(words), start + 5)):
            relation = lower[start:end]
            if lower[end] in _PREPOSITIONS:
                continue
            if _BEFORE_NOUNS & set(relation) and relation[-1] not in _PREPOSITIONS:
                continue
            if not _COPULAS & set(relation[1:]):
                yield _BAR.join(
                    (" ".join(words[:start]), " ".join(words[start:end]), " ".join(words[end:]))
                )


def _sentences(notes: Sequence[JsonObject]) -> list[Said]:
    """What may be facts in the notes: statements of a few words, each as it was said last."""
    found: dict[str, Said] = {}
    for note in notes:
        for sentence in _SENTENCE_END.split(note["text"]):
            whole = " ".join(sentence.split())
            if len(whole.split()) in _WORDS and not whole.endswith("?"):
                found[whole] = Said(whole, note["id"], note["at"])
    return sorted(found.values(), key=lambda said: (said.at, said.note))


def _named(words: str) -> str:
    """A subject or object as others would say it: I is the user, my dog the user's dog."""
    first, _, rest = words.strip(" ,;:").partition(" ")
    match first.lower():
        case "i" | "me" | "myself":
            return " ".join(filter(None, ("user", rest)))
        case "my" | "our":
            return f"user's {rest}"
        case _:
            return words.strip(" ,;:")


def _is_single(subject: str, relation: str) -> bool:
    """Whether the subject has one such object at a time, so that a new one supersedes it."""
    words = relation.lower().split()
    is_attribute = words == ["is"] and subject.lower().startswith(("my ", "our ", "the "))
    return is_attribute or " ".join(words[:2]) in _SINGLE


async def _remember(os: OS, namespace: str, said: Said, fact: Fact, whose: str) -> dict[str, int]:
    metadata: JsonObject = {"said_in": said.note, "said_by": whose}
    note = Note(text=said.text, fact=fact, metadata=metadata, valid_from=said.at)
    stored = await os.remember([note], namespace=namespace)
    return {
        "facts": 1 - stored.duplicates,
        "duplicates": stored.duplicates,
        "superseded": len(stored.superseded),
    }


async def _refresh_profile(os: OS, namespace: str, whose: str) -> None:
    """Write the note anew that lists what is known of the user now."""
    source = f"{PROFILE}:{whose}" if whose else PROFILE
    known = await os.retrieve(
        "what is known of the user",
        k=PROFILE_FACTS,
        mode="dense",
        namespaces=[namespace],
        kinds=["semantic"],
        where={"said_by": whose},
    )
    await os.forget(source=source, namespace=namespace)
    if known:
        lines = "\n".join(f"- {hit.text}" for hit in sorted(known, key=lambda hit: hit.id))
        note = Note(text=f"The user said:\n{lines}", source=source, kind="semantic")
        await os.remember([note], namespace=namespace)


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
