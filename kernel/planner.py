"""What to feed in the next iteration: which sequences decode, and how many prompt tokens beside.

Pure and without a device: it sees what each generation wants, in the policy's order, and how long
passes take (`pace.py`). The same class runs in the kernel and in the simulation.

Decoding and prefilling compete for the device, and three rules settle it:

- *Latency.* While an urgent generation runs, a step may take `stretch` times what it would take
  that generation alone. What others get is what fits: they take turns, the one that has waited
  longest first. While urgent ones come and go, no step is longer than `step_s`, so that the next
  is served soon. Without any for a while it may be `calm_step_s`: long chunks of a prompt take
  less time a token.
- *Delay against gain.* A prompt ahead of everybody that decodes goes first. One behind them would
  hold up each of them by its prefill; but once it decodes too, every step serves one more, and all
  that wait gain the time saved. It goes first if `gain` times that is larger. On a device where
  rows are nearly free (a GPU) that fills the batch; where they are not, programs that came earlier
  finish earlier. `gain` 0 makes decodes always first, a large one prompts.
- *No starvation.* A prompt that waits gets at least `prompt_share` of the time.

Sources: chunked prefill beside decodes, Agrawal et al., Sarathi-Serve (OSDI'24); delay against gain
is Smith's rule (1956) with the batch's saving as the job's worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmos.kernel.pace import Pace

# Smaller chunks of a prompt waste a pass over the weights.
_LEAST_CHUNK_TOKENS = 16
# Attention reads a prompt in tiles, and a tile that is begun costs as much as a whole one: after
# 1,500 tokens a chunk of 129 takes 10% longer than one of 128 (llama.cpp, SmolLM2-135M, two cores).
_TILE_TOKENS = 64
# What prompts are owed beside decodes is saved up to a chunk of this size.
_OWED_CHUNK_TOKENS = 64
# Beside an urgent generation, prompts come before decodes in one step of so many.
_READ_EVERY = 4
# Urgent generations are expected again for so long after one.
_URGENT_MEMORY_S = 120.0
# A step may be so much longer when that ends a prompt.
_LEFT_OVER = 2.0
# Known tokens up to this count are decoding: forced tokens come in one feed with a sampled one.
_DECODE_ROWS = 16


class Want(NamedTuple):
    """What one generation needs: `pending` known tokens are not in KV yet."""

    key: int
    pending: int
    is_decoding: bool  # it has sampled before; else its prompt is being read
    is_urgent: bool
    remaining_tokens: int  # how many it will still sample, as far as anybody knows
    last_step: int  # the number of the last step that it was in


class Share(NamedTuple):
    """How many tokens a generation feeds in the iteration."""

    key: int
    tokens: int
    is_decode: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a step; see the module. `step_s` and `calm_step_s` are seconds."""

    batch_tokens: int = 512
    step_s: float = 0.25
    calm_step_s: float = 1.0
    stretch: float = 3.2
    prompt_share: float = 0.25
    gain: float = 4.0
    is_speculative: bool = True  # let steps carry guesses where they pay


class Planner:
    """Plans one device's iterations.

    Keeps how much time waiting prompts are owed, and how long ago anybody was urgent.
    """

    def __init__(self, limits: Limits, pace: Pace) -> None:
        self.limits = limits
        self._pace = pace
        self._owed_s = 0.0
        self._turn = 0
        self._calm_s = float("inf")  # planned since anybody was urgent

    def expect_urgent(self) -> None:
        """Keep steps short from now on for a while: somebody urgent will come."""
        self._calm_s = 0.0

    def plan(self, wants: Sequence[Want]) -> list[Share]:
        """Shares of the next step for wants in the policy's order; decodes come first.

        Somebody gets a share whenever anybody wants one.
        """
        shares = self._shares(wants)
        rows = sum(share.tokens for share in shares if share.is_decode)
        prompt_tokens = sum(share.tokens for share in shares if not share.is_decode)
        self._calm_s += self._pace.step_s(rows=rows, prompt_tokens=prompt_tokens)
        if shares or not wants:
            return shares
        # A pass seems to take longer than a step may, for good or since one stalled: only passes
        # can tell.
        first = wants[0]
        return [Share(first.key, min(first.pending, _LEAST_CHUNK_TOKENS), _decodes(first))]

    @property
    def _step_s(self) -> float:
        limits = self.limits
        return limits.step_s if self._calm_s < _URGENT_MEMORY_S else limits.calm_step_s

    def _shares(self, wants: Sequence[Want]) -> list[Share]:
        decoding = [w for w in wants if _decodes(w)]
        reading = [w for w in wants if not _decodes(w)]
        if any(want.is_urgent for want in wants):
            return self._beside_urgent(decoding, reading)
        shares = self._fit(decoding, self.limits.batch_tokens)
        if not reading:
            self._owed_s = 0.0
            return shares
        rows = sum(share.tokens for share in shares)
        within_s = self._prompt_s(wants, decoding, reading, rows)
        return shares + self._chunks(reading, self.limits.batch_tokens - rows, within_s)

    def _prompt_s(
        self, wants: Sequence[Want], decoding: Sequence[Want], reading: Sequence[Want], rows: int
    ) -> float:
        """Seconds of this step for prompts."""
        rest_s = max(self._step_s - self._pace.pass_s(rows), 0.0)
        if not decoding or wants[0] is reading[0] or self._gains(decoding, reading):
            self._owed_s = 0.0
            return rest_s
        share = self.limits.prompt_share
        self._owed_s += self._pace.pass_s(rows) * share / (1 - share)
        chunk = min(reading[0].pending, _OWED_CHUNK_TOKENS)
        if self._owed_s < min(self._pace.pass_s(chunk), self._step_s):
            return 0.0
        owed_s, self._owed_s = min(self._owed_s, self._step_s), 0.0
        return owed_s

    def _gains(self, decoding: Sequence[Want], reading: Sequence[Want]) -> bool:
        """Whether all together gain by reading the first prompt before anybody decodes on."""
        first, pace = reading[0], self._pace
        rows = len(decoding)
        saved_s = pace.pass_s(rows) + pace.pass_s(1) - pace.pass_s(rows + 1)
        together = min(first.remaining_tokens, max(w.remaining_tokens for w in decoding))
        delay_s = pace.prompt_s(first.pending, batch_tokens=self.limits.batch_tokens)
        return self.limits.gain * saved_s * together * len(reading) > delay_s * rows

    def _beside_urgent(self, decoding: Sequence[Want], reading: Sequence[Want]) -> list[Share]:
        """Urgent ones whole; of the others, in turn, what fits beside them."""
        self._calm_s = 0.0
        budget = self.limits.batch_tokens
        shares = self._fit([w for w in decoding if w.is_urgent], budget)
        rows = sum(share.tokens for share in shares)
        first = [w for w in reading if w.is_urgent]
        if first:
            return shares + self._chunks(first, budget - rows, self._step_s)
        within_s = self._pace.pass_s(rows) * self.limits.stretch
        calm = [w for w in decoding if not w.is_urgent]
        calm.sort(key=lambda w: w.last_step)
        reading = sorted(reading, key=lambda w: w.last_step)
        # What is left is dear to read by, a few tokens at a time, so decodes come first mostly.
        self._turn += 1
        others = [*reading, *calm] if self._turn % _READ_EVERY == 0 else [*calm, *reading]
        chunks: list[Share] = []
        prompt_tokens = 0
        for want in others:
            if _decodes(want):
                # A run of forced tokens that does not fit whole comes in parts.
                most = min(want.pending, budget - rows - prompt_tokens)
                fitting = self._fitting(most, rows, prompt_tokens, within_s)
                if fitting:
                    shares.append(Share(want.key, fitting, True))
                    rows += fitting
            elif not chunks:
                left_s = within_s - self._pace.pass_s(rows)
                chunks = self._chunks([want], budget - rows, left_s, left_over=1.0)
                prompt_tokens = sum(chunk.tokens for chunk in chunks)
        return shares + chunks

    def _fitting(self, most: int, rows: int, prompt_tokens: int, within_s: float) -> int:
        """How many more rows of decodes a step has time for, up to `most`."""
        step_s = self._pace.step_s
        return next(
            (
                more
                for more in range(most, 0, -1)
                if step_s(rows=rows + more, prompt_tokens=prompt_tokens) <= within_s
            ),
            0,
        )

    def _fit(self, wants: Sequence[Want], budget: int) -> list[Share]:
        """Whole shares in order while they fit the budget."""
        shares: list[Share] = []
        for want in wants:
            if want.pending <= budget:
                shares.append(Share(want.key, want.pending, True))
                budget -= want.pending
        return shares

    def _chunks(
        self,
        wants: Sequence[Want],
        budget: int,
        seconds: float,
        *,
        left_over: float = _LEFT_OVER,
    ) -> list[Share]:
        """Prompt chunks in order, within a budget of tokens and, about, of time.

        The end of a prompt is not left over for a small chunk of its own, and what cutting at a
        tile leaves is too small for another prompt.
        """
        within = min(budget, self._pace.rows_within(seconds, most=max(budget, 1)))
        chunks: list[Share] = []
        for want in wants:
            is_end = want.pending <= left_over * within
            count = min(want.pending if is_end else _in_tiles(within), budget)
            if count <= 0:
                break
            chunks.append(Share(want.key, count, False))
            if not is_end:
                break
            budget -= count
            within -= count
        return chunks


def _in_tiles(tokens: int) -> int:
    """A chunk's length, cut to whole tiles where it has any."""
    return tokens // _TILE_TOKENS * _TILE_TOKENS or tokens


def _decodes(want: Want) -> bool:
    return want.is_decoding and want.pending <= _DECODE_ROWS
