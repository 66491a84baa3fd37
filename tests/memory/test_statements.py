"""What was said, in pieces: sentences stand alone, what leans on them stays with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.memory.statements import PIECE_CHARS, asked, packed, statements


def test_sentences_stand_alone_and_what_leans_on_one_stays_with_it() -> None:
    text = "The tram was late. My dog is called Biscuit. He is nine!\nAnna came by."
    assert list(statements(text)) == [
        "The tram was late.",
        "My dog is called Biscuit. He is nine!",
        "Anna came by.",
    ]


def test_lines_that_are_no_sentences_are_joined() -> None:
    code = "\n".join(f"value_{n} = {n}" for n in range(40))
    pieces = list(statements(code))
    assert 2 <= len(pieces) <= 6


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("I am tired. What is my dog called? Thanks.", "What is my dog called?"),
        ("Who came? And when did she go?", "Who came? And when did she go?"),
        ("Tell me of my dog.", "Tell me of my dog."),
        ("  ", ""),
    ],
)
def test_what_is_asked_is_the_questions_or_else_all(text: str, wanted: str) -> None:
    assert asked(text, most_chars=100) == wanted


def test_of_a_long_text_the_end_is_asked() -> None:
    assert asked("a " * 500 + "end", most_chars=9) == "a a a end"


@given(st.text(alphabet="ab it.?!\n", max_size=3000))
def test_pieces_are_together_the_whole_text(text: str) -> None:
    for pieces in (list(statements(text)), list(packed(text))):
        assert "".join("".join(pieces).split()) == "".join(text.split())
        assert all(pieces)
        assert all(len(piece) <= PIECE_CHARS for piece in pieces)
