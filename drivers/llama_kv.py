"""What each sequence holds in llama.cpp's KV cache, in either layout.

Owns the lengths and the moves. `SharedKV` is one buffer of cells: a fork shares them and costs
nothing, but every token's attention runs over everybody's cells. `StreamKV` gives each sequence a
stream of its own, so that attention runs over its own tokens only; a fork is a copy, made as late
as it can be (`llama_forks.py`), and sequences that run move together (`llama_streams.py`), because
llama.cpp computes several in one pass only when their streams are neighbours.

`llama_memory_seq_cp` between streams copies a whole stream, and only at the next decode, from a
source that may have changed by then; so a copy goes through the sequence's state instead, which
moves the tokens in use and at once.

Streams also decide what is computed together. llama.cpp runs a batch whose sequences have feeds of
different lengths as passes over the shortest length, the next one, and so on: beside decodes and
each other, chunks of prompts would be cut to pieces. So each chunk is a call of its own, which on
two cores takes 10% less time (chunks of 117 and 93 tokens beside a draft of 15), and only short
feeds share one.

Arguments are checked by the driver. Engine thread only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmos.drivers.contract import MOST_DRAFT_TOKENS, DeviceError, Feed, SequenceId
from llmos.drivers.llama_forks import Forks
from llmos.drivers.llama_states import LlamaStates, State
from llmos.drivers.llama_streams import Streams

# Feeds of up to so many tokens are computed together: decodes, with what a step may guess.
_SHORT_TOKENS = MOST_DRAFT_TOKENS + 1


class SharedKV:
    """All sequences in one buffer. A sequence's number in llama.cpp is its own.

    `lengths` are the tokens that each sequence holds.
    """

    def __init__(self, states: LlamaStates, sequences: int) -> None:
        self.lengths = [0] * sequences
        self._states = states

    def number(self, sequence: SequenceId) -> int:
        """The number by which llama.cpp knows a sequence; `prepare` and `trim` may change it."""
        return sequence

    def prepare(self, feeds: Sequence[Feed]) -> list[list[Feed]]:
        """Make the sequences of a step ready to be fed, and say which feeds to compute together.

        Those are in the order of llama.cpp's own sequence numbers. Raises: DeviceError.
        """
        return [self._in_order(feeds)]

    def _in_order(self, feeds: Iterable[Feed]) -> list[Feed]:
        return sorted(feeds, key=lambda feed: self.number(feed.sequence))

    def append(self, sequence: SequenceId, tokens: int) -> None:
        """Note tokens that a step has fed."""
        self.lengths[sequence] += tokens

    def take_back(self, sequences: Iterable[SequenceId]) -> None:
        """Drop what a failed step has fed and `append` has not noted. Raises: DeviceError."""
        for sequence in sequences:
            self._states.drop(self.number(sequence), self.lengths[sequence])

    def fork(self, source: SequenceId, target: SequenceId, tokens: int) -> None:
        """Make an empty sequence hold the first tokens of another."""
        self._states.share(source, target, tokens)
        self.lengths[target] = tokens

    def trim(self, sequence: SequenceId, tokens: int) -> None:
        """Keep the first tokens of a sequence that holds more. Raises: DeviceError."""
        self._states.drop(self.number(sequence), tokens)
        self.lengths[sequence] = tokens

    def save(self, sequence: SequenceId) -> State:
        """A sequence's state. Raises: DeviceError."""
        return self._states.read(self.number(sequence))

    def restore(self, state: State, sequence: SequenceId, tokens: int) -> None:
        """Fill an empty sequence from a state of `tokens` tokens. Raises: DeviceError."""
        self._states.write(state, self.number(sequence), tokens)
        self.lengths[sequence] = tokens


class StreamKV(SharedKV):
    """A stream of KV for each sequence. Its stream is its number in llama.cpp."""

    def __init__(self, states: LlamaStates, sequences: int, *, can_trim: bool) -> None:
        super().__init__(states, sequences)
        self._streams = Streams(sequences)
        self._forks = Forks()
        self._can_trim = can_trim

    def number(self, sequence: SequenceId) -> int:
        return self._streams.of(sequence)

    def prepare(self, feeds: Sequence[Feed]) -> list[list[Feed]]:
        short = [feed for feed in feeds if len(feed.tokens) + len(feed.draft) <= _SHORT_TOKENS]
        long = [feed for feed in feeds if len(feed.tokens) + len(feed.draft) > _SHORT_TOKENS]
        # Readers among the long move too, now that it is free: soon they decode with the others.
        readers = [feed for feed in long if self._forks.holder(feed.sequence) is not None]
        self._arrange([feed.sequence for feed in (*short, *readers)])
        for feed in feeds:
            self._own(feed.sequence)
        return [*([self._in_order(short)] if short else []), *([feed] for feed in long)]

    def _arrange(self, together: Sequence[SequenceId]) -> None:
        """Bring sequences next to each other where that pays."""
        # Readers have nothing to move yet: they change places for free, and are copied after.
        held = [
            0 if self._forks.holder(sequence) is not None else length
            for sequence, length in enumerate(self.lengths)
        ]
        for one, other in self._streams.due(together, held):
            self._swap(one, other, held)

    def fork(self, source: SequenceId, target: SequenceId, tokens: int) -> None:
        self._forks.note(source, target)
        self.lengths[target] = tokens
        if not self._can_trim:
            # A recurrent state has no beginning that would stay as it is while its source grows.
            self._own(target)

    def trim(self, sequence: SequenceId, tokens: int) -> None:
        forks = self._forks
        if forks.holder(sequence) is None:
            heir = forks.heir(sequence, tokens, self.lengths)
            kept = tokens if heir is None else self.lengths[heir]
            self._states.drop(self.number(sequence), kept)
            if heir is not None:
                self._streams.swap(sequence, heir)
                forks.inherit(sequence, heir)
        self.lengths[sequence] = tokens
        if not tokens:
            forks.settle(sequence)

    def save(self, sequence: SequenceId) -> State:
        holder = self._forks.holder(sequence)
        if holder is not None and self.lengths[holder] == self.lengths[sequence]:
            return super().save(holder)
        self._own(sequence)
        return super().save(sequence)

    def _own(self, sequence: SequenceId) -> None:
        """Give a sequence a copy of what it reads in another's stream."""
        holder = self._forks.holder(sequence)
        if holder is None:
            return
        held, tokens = self.lengths[holder], self.lengths[sequence]
        self._states.copy(self.number(holder), self.number(sequence), held)
        if tokens < held:
            self._states.drop(self.number(sequence), tokens)
        self._forks.settle(sequence)

    def _swap(self, one: SequenceId, other: SequenceId, held: Sequence[int]) -> None:
        """Let two sequences, of which the streams hold `held` tokens, change streams."""
        if not held[one]:
            one, other = other, one
        here, there = self.number(one), self.number(other)
        self._streams.swap(one, other)
        try:
            displaced = self._states.read(there) if held[other] else None
            if displaced is not None:
                self._states.drop(there, 0)
            if held[one]:
                self._states.copy(here, there, held[one])
                self._states.drop(here, 0)
            if displaced is not None:
                self._states.write(displaced, here, held[other])
        except DeviceError as problem:
            raise DeviceError(f"a sequence was lost: {problem}", is_fatal=True) from problem
