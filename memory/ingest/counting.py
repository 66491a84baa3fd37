"""Counting tokens fast: word by word, each distinct word by the tokenizer once.

Cutting counts every piece of every file, most of whose words it has seen before. The count is exact
for tokenizers that part text at spaces and marks before anything else (WordPiece); others join some
of the parts, so that it errs on the large side and a chunk stays within its tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# A run of letters and digits is a word, every other mark is one of its own.
_WORD = re.compile(r"[^\W_]+|[^\w\s]|_")
_MOST_WORDS = 200_000  # in memory: some 20 MB


class WordCounter:
    """Counts tokens by `count`: the tokenizer's, which adds those that stand around a text."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count
        self.around = 2 * count("a") - count("a a")
        self._known: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        """The tokens of a text, without those around it."""
        words = _WORD.findall(text)
        try:
            return sum(map(self._known.__getitem__, words))
        except KeyError:
            return sum(map(self._learn, words))

    def _learn(self, word: str) -> int:
        tokens = self._known.get(word)
        if tokens is None:
            if len(self._known) >= _MOST_WORDS:
                self._known.clear()
            tokens = self._known[word] = max(1, self._count(word) - self.around)
        return tokens
