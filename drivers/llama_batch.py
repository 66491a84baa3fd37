"""One llama.cpp batch, filled in place.

The C structure points into numpy arrays that live as long as the batch, so filling is slice
assignment and nothing is allocated per step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from llmos.drivers.contract import Feed
from llmos.drivers.decoding import rows_of


class Placed(NamedTuple):
    """A feed with the stream it goes to and the position of its first token there."""

    stream: int
    position: int
    feed: Feed


class LlamaBatch:
    """Room for `capacity` tokens. `structure` is what `llama_decode` takes."""

    def __init__(self, library: Any, capacity: int) -> None:
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._sequences = np.zeros(capacity, np.int32)
        self._wants_logits = np.zeros(capacity, np.int8)
        # Every token belongs to one sequence: counts of 1, and a pointer each to its id.
        self._counts = np.ones(capacity, np.int32)
        self._pointers = self._sequences.ctypes.data + 4 * np.arange(capacity, dtype=np.uint64)
        self._numbers = np.arange(capacity, dtype=np.int32)
        self.structure: Any = library.llama_batch()
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._pointers),
            ("logits", self._wants_logits),
        ):
            kind: Any = dict(library.llama_batch._fields_)[name]
            setattr(self.structure, name, ctypes.cast(array.ctypes.data, kind))

    def fill(self, placed: Iterable[Placed]) -> None:
        """Hold the tokens and drafts of the feeds, in the given order."""
        start = 0
        for stream, position, feed in placed:
            count = len(feed.tokens) + len(feed.draft)
            end = start + count
            self._tokens[start:end] = (*feed.tokens, *feed.draft) if feed.draft else feed.tokens
            self._positions[start:end] = self._numbers[:count]
            self._positions[start:end] += position
            self._sequences[start:end] = stream
            self._wants_logits[start:end] = 0
            self._wants_logits[end - rows_of(feed) : end] = 1
            start = end
        self.structure.n_tokens = start
