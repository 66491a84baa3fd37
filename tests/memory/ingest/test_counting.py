"""Counting by words is what the tokenizer counts where that parts text at the same places."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from llmos.memory.ingest.counting import WordCounter


class Tokenizer:
    """Marks stand alone, a word is a token for every three letters, two tokens stand around all."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, text: str) -> int:
        self.calls += 1
        words = re.findall(r"[^\W_]+|[^\w\s]|_", text)
        return 2 + sum(-(-len(word) // 3) for word in words)


@given(st.text())
def test_the_count_is_the_tokenizers(text: str) -> None:
    exact = Tokenizer()
    counter = WordCounter(exact)
    assert counter.around == 2
    assert counter(text) == exact(text) - 2


def test_a_word_is_counted_once() -> None:
    exact = Tokenizer()
    counter = WordCounter(exact)
    counter("the lamp, the lamp")
    known = exact.calls
    assert counter("lamp lamp, the") == 6
    assert exact.calls == known
