"""Near-duplicates: whether two texts that embeddings find alike say the same.

Embeddings see what a text is about, and hardly what it says of it: a fact and its denial, or the
same sentence with another number or name, are nearly one vector. So nearness only proposes; a pair
that differs in a number, a name or a negation is kept apart. The mistakes left are pairs kept apart
that could have been one, which cost a little room and lose nothing. Pure functions; the word lists
are English, and in other languages numbers and capitals decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SEMANTIC_COSINE = 0.95  # from here on, semantic notes are taken for one unless the caller says

_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_NEGATIONS = frozenset(
    {
        *("no", "not", "never", "none", "nobody", "nothing", "nowhere", "neither", "nor"),
        *("without", "cannot", "hardly"),
    }
)
_NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        (
            *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
            *("ten", "eleven", "twelve"),
        )
    )
}
# Words that have a capital only because a sentence begins with them.
_OPENERS = frozenset(
    {
        *("a", "an", "and", "as", "at", "but", "by", "for", "from", "he", "her", "his", "i", "if"),
        *("in", "is", "it", "its", "my", "of", "on", "or", "our", "she", "so", "that", "the"),
        *("their", "there", "they", "this", "to", "was", "we", "when", "while", "with", "you"),
        "your",
    }
)


def says_the_same(one: str, other: str) -> bool:
    """Whether two texts have the same numbers and negations, and each the names of the other."""
    if _numbers(one) != _numbers(other) or _negations(one) != _negations(other):
        return False
    return _names(one) <= _words(other) and _names(other) <= _words(one)


def _numbers(text: str) -> list[str]:
    words = (word.lower() for word in _WORD.findall(text))
    spelled = [_NUMBER_WORDS[word] for word in words if word in _NUMBER_WORDS]
    return sorted(_NUMBER.findall(text) + spelled)


def _negations(text: str) -> int:
    return sum(
        word in _NEGATIONS or word.endswith(("n't", "n\u2019t"))
        for word in (found.lower() for found in _WORD.findall(text))
    )


def _names(text: str) -> frozenset[str]:
    """The words with a capital, as far as they are not just the beginning of a sentence."""
    return _folded(word for word in _WORD.findall(text) if word[0].isupper()) - _OPENERS


def _words(text: str) -> frozenset[str]:
    return _folded(_WORD.findall(text))


def _folded(words: Iterable[str]) -> frozenset[str]:
    return frozenset(word.casefold() for word in words)
