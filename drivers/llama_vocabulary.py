"""A GGUF model's tokenizer, through llama.cpp.

Owns the tables made from the vocabulary once, when the model is opened. Its methods may be called
from any thread while the model is open.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

_PIECE_BYTES = 256


class LlamaVocabulary:
    """Tokens of one open model.

    `pieces` are the bytes of each token by id, with special tokens by their own text; `special`
    gives the id of each special token's text; `end_tokens` end a generation. `begin` is the text
    of the token that the model wants before every prompt, if it wants one.
    """

    def __init__(self, library: Any, model: Any) -> None:
        self._library = library
        self._vocab: Any = library.llama_model_get_vocab(model)
        self.size: int = library.llama_vocab_n_tokens(self._vocab)
        self.pieces = [self._piece(token) for token in range(self.size)]
        controls = [
            token
            for token in range(self.size)
            if library.llama_vocab_is_control(self._vocab, token)
        ]
        self.special = {
            self.pieces[token].decode("utf-8", errors="replace"): token for token in controls
        }
        self.end_tokens = frozenset(
            token for token in range(self.size) if library.llama_vocab_is_eog(self._vocab, token)
        )
        self.bos = self._text_of(library.llama_vocab_bos(self._vocab))
        self.eos = self._text_of(library.llama_vocab_eos(self._vocab))
        adds_begin = bool(library.llama_vocab_get_add_bos(self._vocab))
        self.begin = self.bos if adds_begin and self.bos in self.special else None
        # What each token says to a reader: special tokens say nothing.
        self._spoken = list(self.pieces)
        for token in controls:
            self._spoken[token] = b""

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids; `special` reads special tokens' texts as tokens. No begin token is added."""
        # A lone surrogate cannot be written as UTF-8 and reaches the model as a question mark.
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 8
        while True:
            ids = (ctypes.c_int32 * room)()
            count: int = self._library.llama_tokenize(
                self._vocab, data, len(data), ids, room, False, special
            )
            if count >= 0:
                return ids[:count]
            room = -count

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """The bytes of the tokens; special tokens give nothing."""
        spoken = self._spoken
        return b"".join([spoken[token] for token in tokens])

    def _piece(self, token: int) -> bytes:
        room = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(room)
            count: int = self._library.llama_token_to_piece(
                self._vocab, token, buffer, room, 0, True
            )
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def _text_of(self, token: int) -> str:
        """A token's text; llama.cpp answers -1 for a token that the model does not have."""
        return self.pieces[token].decode("utf-8", errors="replace") if token >= 0 else ""
