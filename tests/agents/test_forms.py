"""The forms that text is held to: what they admit, and that they end."""

from __future__ import annotations

import re

import pytest

from llmos.agents.forms import clause, json_sentence, sentence, words

FORM = sentence(least=5, most=60)


@pytest.mark.parametrize(
    "text",
    [
        "The lamp is red.",
        "It takes 0.3 s, not 3.5 minutes.",
        "Read notes.txt and then a.py.",
        "Is it (red), blue; or not?!.",
    ],
)
def test_a_sentence_is_admitted(text: str) -> None:
    assert re.fullmatch(FORM, text)


@pytest.mark.parametrize(
    "text",
    [
        "the lamp is red.",
        "The lamp is red",
        "The lamp. It is red.",
        "The lamp.com.com.com is red.",
        "See 2.2.2.2 in it.",
        "It reads.100% of it.",
        "It reads.Then it writes.",
        "The\nlamp is red.",
        "Red.",
        "T" * 90 + ".",
    ],
)
def test_what_is_none_or_would_not_end_is_not_admitted(text: str) -> None:
    assert not re.fullmatch(FORM, text)


def test_the_beginning_and_what_must_not_be_there_are_the_callers() -> None:
    form = sentence(least=1, most=60, start=" [a-z]", without=r"\[\]")
    assert re.fullmatch(form, " cats are clean.")
    assert not re.fullmatch(form, " cats [1] are clean.")
    assert re.fullmatch(clause(least=1, most=60), "The lamp is red")


def test_a_sentence_in_json_needs_no_escapes() -> None:
    form = json_sentence(least=1, most=60)
    assert re.fullmatch(form, "The lamp is red.")
    assert not re.fullmatch(form, 'The "lamp" is red.')
    assert not re.fullmatch(form, "The \\lamp is red.")


def test_words_are_counted() -> None:
    form = words(most=6)
    assert re.fullmatch(form, "The 3.5 lamps, a.txt and me.")
    assert not re.fullmatch(form, "The lamp is red and it turns.")
    assert not re.fullmatch(form, "The lamp is.")
    assert not re.fullmatch(form, "The lamp,which,turns,is red and.")
