"""Quotes are sentences of the sources; citations are checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmos.agents.grounding import checked, quote, shown_source, support
from llmos.agents.handle import OS

SOURCES = {1: "A lighthouse sends a red light.", 2: "Ships see the light from twenty miles."}


def test_sentences_that_their_citations_bear_out_are_kept() -> None:
    text = "A lighthouse sends red light [1]. Ships see it from twenty miles [2]."
    assert checked(text, SOURCES) == (text.replace(" [", " ["), (1, 2), ())


def test_a_citation_that_does_not_exist_is_dropped_and_told() -> None:
    kept = checked("A lighthouse sends light [1] [7].", SOURCES)
    assert kept == ("A lighthouse sends light [1].", (1,), ("[7] is no source",))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Lighthouses were invented by bankers [1].", "of the words stand in what it cites"),
        ("A lighthouse sends light.", "no source is cited"),
        ("A lighthouse sends light [9].", "no source is cited"),
        ("A lighthouse sends a red", "does not end as a sentence"),
    ],
)
def test_a_sentence_without_support_is_dropped_and_told(text: str, reason: str) -> None:
    kept = checked(text, SOURCES)
    assert kept.text == ""
    assert reason in " ".join(kept.dropped)


def test_a_dot_inside_a_word_does_not_end_a_sentence() -> None:
    kept = checked("Read notes.txt version 3.5 [1].", {1: "read notes.txt version 3.5"})
    assert kept.text == "Read notes.txt version 3.5 [1]."


def test_support_is_the_share_of_longer_words() -> None:
    assert support("a red lamp shines", "the lamp is on") == 0.5
    assert support("a b", "") == 1.0


NOTES = [
    "# Lamps\n\nThe lamp on the tower is red. Does it turn every ten seconds?",
    "The harbour of the town is deep.\n\n```\nThe lamp = red.\n```",
]


async def quoted(os: OS, question: str, notes: list[str], margin: float = 2.0) -> Any:
    if notes:
        await os.remember(notes)
    hits = await os.retrieve("lamp", k=5)
    found = await quote(os, question, hits, candidates=2, margin=margin)
    return None if found is None else [found.text, found.hit.text]


def test_a_quote_is_the_sentence_that_the_model_chose(run_program: Callable[..., Any]) -> None:
    for sentence, note in (
        ("The lamp on the tower is red.", NOTES[0]),
        ("The harbour of the town is deep.", NOTES[1]),
    ):
        script = lambda said, sentence=sentence: sentence  # noqa: E731
        assert run_program(quoted, "Is the lamp red?", NOTES, script=script)[0] == [sentence, note]


def test_a_sentence_that_is_far_nearer_than_the_rest_is_taken_unasked(
    run_program: Callable[..., Any],
) -> None:
    question = "Is the lamp on the tower red?"
    other = "The harbour of the town is deep."
    taken, _ = run_program(quoted, question, NOTES, 0.1, script=lambda said: other)
    assert taken == ["The lamp on the tower is red.", NOTES[0]]


def test_a_single_sentence_needs_no_choice(run_program: Callable[..., Any]) -> None:
    value, _ = run_program(quoted, "Red?", NOTES[:1], script=lambda said: "Something else.")
    assert value == ["The lamp on the tower is red.", NOTES[0]]


@pytest.mark.parametrize("notes", [[], ["Too short.", "```\nonly code, which is no prose.\n```"]])
def test_without_a_statement_there_is_no_quote(
    run_program: Callable[..., Any], notes: list[str]
) -> None:
    assert run_program(quoted, "Is it?", notes)[0] is None


def test_a_source_is_shown_from_its_folder_on() -> None:
    source = {"source": "/srv/docs/guide.md", "place": "line 4", "text": ""}
    assert shown_source(source, "/srv/docs/") == "guide.md, line 4"
    assert shown_source(source, "/srv/other") == "/srv/docs/guide.md, line 4"
    assert shown_source({**source, "place": None}) == "/srv/docs/guide.md"
