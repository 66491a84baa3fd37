"""Which sequences still read their KV from another's stream.

A fork between streams is a copy. Most of it can be put off, and much of it is never made: a fork
that nobody has fed reads the stream of the sequence that holds its tokens, and a holder that is
freed or cut leaves its stream to the reader that needs most of it. So a copy is made only when a
reader is fed while someone else needs the same stream.

Pure: it keeps the map; `llama_kv.py` copies. A reader's tokens are always the first ones of its
holder's stream, so that a holder which only grows disturbs nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmos.drivers.contract import SequenceId


class Forks:
    """A map of readers to holders. A holder reads nobody: forks of a fork read its holder."""

    def __init__(self) -> None:
        self._holder_of: dict[SequenceId, SequenceId] = {}

    def holder(self, sequence: SequenceId) -> SequenceId | None:
        """Whose stream the sequence reads; None when it has its own."""
        return self._holder_of.get(sequence)

    def note(self, source: SequenceId, target: SequenceId) -> None:
        """Note that `target`, which holds nothing, reads what `source` does."""
        self._holder_of[target] = self._holder_of.get(source, source)

    def settle(self, sequence: SequenceId) -> None:
        """Note that a sequence reads nobody from now on: it was copied, or freed."""
        self._holder_of.pop(sequence, None)

    def heir(self, holder: SequenceId, keeps: int, lengths: Sequence[int]) -> SequenceId | None:
        """The longest reader of a holder that is cut to `keeps` tokens; None if that is enough."""
        readers = [reader for reader, held in self._holder_of.items() if held == holder]
        heir = max(readers, key=lambda reader: lengths[reader], default=None)
        return heir if heir is not None and lengths[heir] > keeps else None

    def inherit(self, holder: SequenceId, heir: SequenceId) -> None:
        """Note that a reader has taken over the stream; the others, and the holder, read it."""
        del self._holder_of[heir]
        for reader, held in self._holder_of.items():
            if held == holder:
                self._holder_of[reader] = heir
        self._holder_of[holder] = heir
