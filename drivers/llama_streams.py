"""Which stream of llama.cpp's KV cache holds which sequence.

llama.cpp computes several sequences in one pass only where their streams are neighbours; sequences
that run become scattered, because cached ones lie between them. A pass more at every step costs as
much as a step without batching; bringing the running ones together costs a copy of some KV, once.
Pure: it keeps the map and says what to swap.

The choice is rent or buy (Karlin et al. 1988, competitive snoopy caching): passes wasted since the
last arrangement are counted as the copy they could have paid for, and when they have paid for the
copy that ends them, it is made. So no workload pays more than twice what it had to.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmos.drivers.contract import SequenceId

# Copying the KV of this many tokens takes about as long as one more pass of a decoding step
# (SmolLM2-135M: 5 ms each on one core). Larger models make a pass dearer and so this cautious.
PASS_TOKENS = 800


class Streams:
    """A one-to-one map of sequences to streams; it starts as the identity."""

    def __init__(self, count: int) -> None:
        self._stream_of = list(range(count))
        self._paid_tokens = 0

    def of(self, sequence: SequenceId) -> int:
        """The stream that holds a sequence."""
        return self._stream_of[sequence]

    def swap(self, one: SequenceId, other: SequenceId) -> None:
        """Note that two sequences have changed places."""
        streams = self._stream_of
        streams[one], streams[other] = streams[other], streams[one]

    def due(
        self, running: Sequence[SequenceId], lengths: Sequence[int]
    ) -> list[tuple[SequenceId, SequenceId]]:
        """The pairs of sequences to swap before this step; none while it does not pay.

        `lengths` are the tokens that each sequence holds.
        """
        passes = _passes([self._stream_of[sequence] for sequence in running])
        if passes <= 1:
            return []
        self._paid_tokens += (passes - 1) * PASS_TOKENS
        pairs, tokens = self._cheapest(set(running), lengths)
        if tokens > self._paid_tokens:
            return []
        self._paid_tokens = 0
        return pairs

    def _cheapest(
        self, running: set[SequenceId], lengths: Sequence[int]
    ) -> tuple[list[tuple[SequenceId, SequenceId]], int]:
        """The swaps that make the running sequences neighbours, and the tokens they copy."""
        holder = sorted(range(len(self._stream_of)), key=self._stream_of.__getitem__)
        plans: list[tuple[int, int]] = []
        for start in range(len(holder) - len(running) + 1):
            window = set(holder[start : start + len(running)])
            plans.append((sum(lengths[sequence] for sequence in window ^ running), start))
        tokens, start = min(plans)
        window = holder[start : start + len(running)]
        outside = sorted(running - set(window))
        inside = [sequence for sequence in window if sequence not in running]
        return list(zip(outside, inside, strict=True)), tokens


def _passes(streams: Sequence[int]) -> int:
    """How many runs of neighbours the streams form."""
    taken = set(streams)
    return sum(stream - 1 not in taken for stream in taken)
