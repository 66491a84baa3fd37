"""Which texts that are alike say the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.memory.duplicates import says_the_same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The valve leaks.", "the valve is leaking"),
        ("Ann likes green tea.", "Ann likes the green tea"),
        ("My sister lives in Oslo.", "My sister is living in Oslo."),
        ("The door is locked.", "The door has been locked."),
        ("It doesn't work.", "It does not work."),
        ("They have 2 children.", "They have two children."),
    ],
)
def test_other_words_for_the_same_say_the_same(one: str, other: str) -> None:
    assert says_the_same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Pump 7 was replaced.", "Pump 8 was replaced."),
        ("Ann likes tea.", "Bob likes tea."),
        ("They have two children.", "They have three children."),
        ("Ann likes tea.", "Ann does not like tea."),
        ("Ann likes tea.", "Ann doesn\u2019t like tea."),
        ("It costs 5.20 euro.", "It costs 5.30 euro."),
        ("The train leaves at 10:15.", "The train leaves at 10:50."),
        ("Zürich is near.", "Genève is near."),
    ],
)
def test_another_number_name_or_denial_says_something_else(one: str, other: str) -> None:
    assert not says_the_same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The valve is open.", "The valve is closed."),
        ("The pump is on.", "The pump is off."),
        ("Ann likes tea.", "Ann hates tea."),
        ("The left motor is broken.", "The right motor is broken."),
        ("The export includes deleted notes.", "The export excludes deleted notes."),
        ("The patch is safe to apply.", "The patch is unsafe to apply."),
        ("She is older than her brother.", "She is younger than her brother."),
        ("The dog chased the cat.", "The cat chased the dog."),
        ("He lent her the money.", "She lent him the money."),
        ("He arrived before the meeting.", "He arrived after the meeting."),
        ("The pump is broken.", "The pump was broken."),
        ("Ann lives in Rome.", "Ann lived in Rome."),
        ("The user is vegetarian.", "The user is vegan."),
    ],
)
def test_what_contradicts_says_something_else(one: str, other: str) -> None:
    assert not says_the_same(one, other)


@given(st.text(max_size=60), st.text(max_size=60))
def test_it_is_symmetric_and_every_text_says_the_same_as_itself(one: str, other: str) -> None:
    assert says_the_same(one, other) == says_the_same(other, one)
    assert says_the_same(one, one)
