"""Texts and sentences as an encoder reads them: token ids, and which token begins which word.

Owns the tokenizer's use: the limit on length, windows of a long sentence, the alignment of words
and sub-words, and each word's way of writing, which a tokenizer without capitals loses. Refuses to
know labels, batches and tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from llmos.drivers.torch_weights import load_tokenizer

# Where a text is cut before it is split into tokens, in characters for each token of the limit:
# more than any language's words have, and little enough that no text is too long to read.
_TOKEN_CHARS = 64


class Case(IntEnum):
    """A word's way of writing."""

    lower = 0  # also what belongs to no word
    title = 1
    upper = 2
    mixed = 3
    digits = 4  # has a digit
    symbols = 5  # has neither letter nor digit


class ReadText(NamedTuple):
    """`is_cut` is whether the text was longer than the limit."""

    tokens: tuple[int, ...]
    is_cut: bool


class ReadWords(NamedTuple):
    """A run of a sentence's words. A word of no tokens has no place in it.

    `places` are the tokens that begin a word, `words` the numbers of these words in the sentence,
    `cases` has one entry a token.
    """

    tokens: tuple[int, ...]
    places: tuple[int, ...]
    words: tuple[int, ...]
    cases: tuple[int, ...]


class EncoderText:
    """A tokenizer with a limit. Raises: DeviceError when the folder has no tokenizer."""

    def __init__(self, folder: Path, *, max_length_tokens: int) -> None:
        tokenizer = load_tokenizer(folder)
        self.padding: int = tokenizer.pad_token_id or 0
        self.max_length_tokens = max_length_tokens
        self._tokenizer: Any = tokenizer.backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        empty: list[int] = self._tokenizer.encode("").ids
        self._begin, self._end = empty[:1], empty[1:]

    def texts(self, texts: Sequence[str]) -> list[ReadText]:
        """Token ids of texts with those that begin and end a text; what is over the limit goes."""
        most = self.max_length_tokens
        chars = most * _TOKEN_CHARS
        encodings = self._tokenizer.encode_batch([_written(text[:chars]) for text in texts])
        found: list[ReadText] = []
        for text, encoding in zip(texts, encodings, strict=True):
            ids: list[int] = encoding.ids
            is_cut = len(ids) > most or len(text) > chars
            found.append(ReadText(tuple(ids[: most - 1] + ids[-1:] if is_cut else ids), is_cut))
        return found

    def sentence(self, words: Sequence[str]) -> list[ReadWords]:
        """A sentence in windows of whole words, each within the limit.

        A word longer than a window is cut.
        """
        room = self.max_length_tokens - len(self._begin) - len(self._end)
        windows: list[ReadWords] = []
        pieces: list[tuple[int, list[int]]] = []
        used = 0
        for number, ids in enumerate(self._pieces(words)):
            ids = ids[:room]
            if pieces and used + len(ids) > room:
                windows.append(self._window(pieces, words))
                pieces, used = [], 0
            if ids:
                pieces.append((number, ids))
                used += len(ids)
        if pieces:
            windows.append(self._window(pieces, words))
        return windows

    def _pieces(self, words: Sequence[str]) -> list[list[int]]:
        chars = self.max_length_tokens * _TOKEN_CHARS
        encodings = self._tokenizer.encode_batch(
            [_written(word[:chars]) for word in words], add_special_tokens=False
        )
        return [encoding.ids for encoding in encodings]

    def _window(self, pieces: Sequence[tuple[int, list[int]]], words: Sequence[str]) -> ReadWords:
        tokens, cases = list(self._begin), [int(Case.lower)] * len(self._begin)
        places: list[int] = []
        for number, ids in pieces:
            places.append(len(tokens))
            tokens += ids
            cases += [int(case_of(words[number]))] * len(ids)
        tokens += self._end
        cases += [int(Case.lower)] * len(self._end)
        numbers = tuple(number for number, _ in pieces)
        return ReadWords(tuple(tokens), tuple(places), numbers, tuple(cases))


def case_of(word: str) -> Case:
    """How a word is written."""
    letters = [char for char in word if char.isalpha()]
    if any(char.isdigit() for char in word):
        return Case.digits
    if not letters:
        return Case.symbols
    if all(not char.isupper() for char in letters):
        return Case.lower
    if all(char.isupper() for char in letters):
        return Case.upper if len(letters) > 1 else Case.title
    if letters[0].isupper() and all(not char.isupper() for char in letters[1:]):
        return Case.title
    return Case.mixed


def _written(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode()
