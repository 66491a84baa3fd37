"""A transformers tokenizer as the drivers need it: ids, and bytes.

Owns the tables made from the vocabulary once, when the model is opened. Its methods may be called
from any thread. Refuses to know chat templates.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

# Special tokens that end a turn or a text, whichever of them a model's settings name: a chat model
# may end by a token that its base did not know.
_END_TEXTS = frozenset(
    {
        "</s>",
        "<EOT>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|end|>",
        "<|im_end|>",
        "<end_of_turn>",
        "<reponame>",  # what a model for code writes where another repository would begin
    }
)


class TorchVocabulary:
    """Tokens of one tokenizer.

    `pieces` are the bytes of each token by id, with special tokens by their own text; `special`
    gives the id of each special token's text; `end_tokens` end a generation, those in `ends` and
    those known by name. `begin` is the text of the token that the model wants before every prompt,
    if it wants one.
    """

    def __init__(self, tokenizer: Any, ends: Iterable[int] = ()) -> None:
        from tokenizers import Tokenizer

        self._marked: Any = tokenizer.backend_tokenizer
        self._marked.no_truncation()
        self._marked.no_padding()
        # The same tokenizer, but special tokens' texts are text to it.
        self._plain: Any = Tokenizer.from_str(self._marked.to_str())
        self._plain.encode_special_tokens = True
        added: dict[int, Any] = self._marked.get_added_tokens_decoder()
        self.special = {token.content: number for number, token in added.items() if token.special}
        self.pieces = _pieces(self._marked, {number: t.content for number, t in added.items()})
        self.size = len(self.pieces)
        self.bos: str = tokenizer.bos_token or ""
        self.eos: str = tokenizer.eos_token or ""
        self.end_tokens = frozenset(
            {number for text, number in self.special.items() if text in _END_TEXTS}
            | {number for number in (tokenizer.eos_token_id, *ends) if number is not None}
        )
        first = self._marked.encode("a").ids[:1]
        self.begin = self.bos if first == [self.special.get(self.bos)] else None
        # What each token says to a reader: special tokens say nothing.
        self._spoken = list(self.pieces)
        for number in self.special.values():
            self._spoken[number] = b""

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids; `special` reads special tokens' texts as tokens. No begin token is added."""
        # A lone surrogate cannot be written as UTF-8 and reaches the model as a question mark.
        whole = text.encode("utf-8", errors="replace").decode()
        ids: list[int] = (
            (self._marked if special else self._plain).encode(whole, add_special_tokens=False).ids
        )
        return ids

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """The bytes of the tokens; special tokens give nothing."""
        spoken = self._spoken
        return b"".join([spoken[token] for token in tokens])


def _pieces(backend: Any, added: dict[int, str]) -> list[bytes]:
    """The bytes of every id up to the highest; an id that no token has gives none."""
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(vocabulary.values()) + 1)
    is_byte_level = "ByteLevel" in json.dumps(json.loads(backend.to_str())["decoder"])
    alphabet = _byte_level_alphabet() if is_byte_level else {}
    for text, number in vocabulary.items():
        if number in added:
            pieces[number] = added[number].encode()
        elif is_byte_level:
            pieces[number] = bytes(alphabet[letter] for letter in text)
        else:
            pieces[number] = _sentencepiece_bytes(text)
    return pieces


def _byte_level_alphabet() -> dict[str, int]:
    """The letter that byte-level vocabularies write for each byte: itself where it is visible in
    Latin-1, else the next free one from U+0100 on, in order.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters = {chr(byte): byte for byte in visible}
    hidden = (byte for byte in range(0x100) if byte not in visible)
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(hidden)}


def _sentencepiece_bytes(text: str) -> bytes:
    """The bytes of a sentencepiece token: U+2581 is a space, <0x0A> is one byte."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace("▁", " ").encode()
