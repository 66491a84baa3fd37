"""Words of a text keep their places, and labels make entities of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.kernel.entities import tagged_text, words_of


@given(st.text())
def test_each_word_is_what_stands_at_its_place_and_nothing_else_is_left_but_space(
    text: str,
) -> None:
    found = words_of(text)
    assert [text[start:end] for start, end in found.spans] == list(found.words)
    assert "".join(found.words) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ann's well-known.", ["Ann's", "well-known", "."]),
        ("@ann likes #oslo!", ["@ann", "likes", "#oslo", "!"]),
        ("see https://a.b/c?d=e, now", ["see", "https://a.b/c?d=e,", "now"]),
        ("at 10:30 for 1,000.50", ["at", "10:30", "for", "1,000.50"]),
    ],
)
def test_words_are_split_as_the_corpora_have_them(text: str, words: list[str]) -> None:
    assert list(words_of(text).words) == words


def test_words_that_are_given_have_places_in_the_words_joined_by_spaces() -> None:
    found = words_of(["New", "York", "!"])
    assert found.text == "New York !"
    assert found.spans == ((0, 3), (4, 8), (9, 10))


def test_entities_are_runs_of_one_label_with_the_characters_between() -> None:
    words = words_of("Ann  Lee met Bo in Oslo")
    tags = ["B-person", "I-person", "O", "B-person", "O", "I-place"]
    found = tagged_text(words, [(tag, 0.5 + place / 10) for place, tag in enumerate(tags)])
    shown = [(one.text, one.label, one.start, one.end) for one in found.entities]
    assert shown == [
        ("Ann  Lee", "person", 0, 8),
        ("Bo", "person", 13, 15),
        ("Oslo", "place", 19, 23),
    ]
    assert (found.entities[0].first, found.entities[0].last) == (0, 1)
    assert found.entities[0].score == pytest.approx(0.55)
    assert found.tags == tuple(tags)


def test_a_beginning_ends_the_entity_before_it_and_another_kind_does_too() -> None:
    tags = ["B-a", "B-a", "I-b", "I-b"]
    found = tagged_text(words_of("w x y z"), [(tag, 1.0) for tag in tags])
    assert [(one.text, one.label) for one in found.entities] == [
        ("w", "a"),
        ("x", "a"),
        ("y z", "b"),
    ]
