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
        ("Ann likes green tea.", "Green tea is what Ann likes."),
        ("It was replaced in 2024.", "The replacement was in 2024."),
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


@given(st.text(max_size=60), st.text(max_size=60))
def test_it_is_symmetric_and_every_text_says_the_same_as_itself(one: str, other: str) -> None:
    assert says_the_same(one, other) == says_the_same(other, one)
    assert says_the_same(one, one)
