"""How the next token is chosen from one row of logits.

Owns the arithmetic of `Sampling`, the same on every local driver, and the state it needs for one
sequence: a random generator and the window that the penalties look at. Refuses to know what a
constraint means: it receives a mask.

The order is: logit bias; repetition, frequency and presence penalties; the mask; temperature;
top-k; top-p (over what top-k kept); min-p; one draw. Log-probabilities are of the raw row, before
all of it.

What a seed promises: one uniform number of PCG64 is used per generated token and nothing else, so a
draw is a function of the seed, the settings, the logits and the number of tokens generated before,
whatever other sequences do, however often the sequence was preempted, and whether a token before
was sampled or forced by a constraint.
What it cannot promise: the same logits. A device may round a sequence's logits differently when the
batch has another shape, and a draw that falls within that rounding (or a near tie under greedy)
then goes the other way. `tests/drivers/test_contract.py` says what holds for each driver.

Sources: top-p, Holtzman et al. 2020 (arXiv 1904.09751); repetition penalty, Keskar et al. 2019
(arXiv 1909.05858); min-p, Nguyen et al. 2024 (arXiv 2407.01082).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmos.drivers.contract import DeviceError, RequestError
from llmos.syscalls.options import Sampling

Row = NDArray[np.float32]
Rows = NDArray[np.float32]  # (rows, vocabulary)
Mask = NDArray[np.bool_]

# Below this, dividing by the temperature would overflow single precision; it is greedy anyway.
_LEAST_TEMPERATURE = 1e-6
# Candidates are looked for above these shares of the largest probability before a wider look.
_FLOORS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-12, 0.0)
_BLOCK = 256


class Choice(NamedTuple):
    """A chosen token, with raw log-probabilities where they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """The sampling state of one sequence over a vocabulary of `vocabulary` tokens.

    `prompt` begins the penalty window; `generated` are tokens that were sampled before, after which
    the random stream and the window continue. One thread at a time.
    Raises: RequestError when a logit bias names a token that the vocabulary does not have.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocabulary: int,
        prompt: Sequence[int] = (),
        generated: Sequence[int] = (),
    ) -> None:
        self._sampling = sampling
        self._temperature = sampling.temperature and max(sampling.temperature, _LEAST_TEMPERATURE)
        # One step of PCG64 a token: skipping the steps already taken resumes the stream.
        self._stream = np.random.PCG64(sampling.seed)
        self._stream.advance(len(generated))
        self._random = np.random.Generator(self._stream)
        self._window: deque[int] | None = None
        if _has_penalties(sampling):
            self._window = deque(prompt, maxlen=sampling.penalty_window_tokens)
            self._window.extend(generated)
        self._bias_ids = np.fromiter(sampling.logit_bias.keys(), np.int64)
        self._bias_values = np.fromiter(sampling.logit_bias.values(), np.float32)
        foreign = self._bias_ids[(self._bias_ids < 0) | (self._bias_ids >= vocabulary)]
        if foreign.size:
            raise RequestError(
                f"logit_bias names token {foreign[0]}; the vocabulary has {vocabulary} tokens",
                field="logit_bias",
            )

    def sample(self, logits: Row, mask: Mask | None = None) -> Choice:
        """Choose the next token and remember it for the penalties.

        `logits` is one float32 row `(vocabulary,)` and is not written to; `mask` is true where a
        token is allowed. Raises: DeviceError when no token is allowed or the row is not finite.
        """
        row = self._adjusted(logits, mask)
        best = int(row.argmax())
        if not math.isfinite(row[best]):
            raise DeviceError(_why_no_token(logits, mask))
        token = self._draw(row, row[best]) if self._temperature else best
        self.observe(token)
        wanted = self._sampling.logprobs
        return Choice(token) if wanted is None else _with_logprobs(logits, token, wanted)

    def observe(self, token: int) -> None:
        """Remember a token that the sequence now holds."""
        if self._window is not None:
            self._window.append(token)

    def skip(self, tokens: Sequence[int]) -> None:
        """Go on after generated tokens that were not sampled, as if they had been."""
        for token in tokens:
            self.observe(token)
        self._stream.advance(len(tokens))

    def _adjusted(self, logits: Row, mask: Mask | None) -> Row:
        """The row after bias, penalties and mask; the row itself when there are none."""
        row = logits
        if self._bias_ids.size:
            row = row.copy()
            row[self._bias_ids] += self._bias_values
        if self._window:
            row = self._penalised(row if row is not logits else row.copy(), self._window)
        return row if mask is None else np.where(mask, row, np.float32(-np.inf))

    def _penalised(self, row: Row, window: deque[int]) -> Row:
        """The row with seen tokens made less likely, in place."""
        sampling = self._sampling
        ids, counts = np.unique(np.fromiter(window, np.int64, len(window)), return_counts=True)
        seen = row[ids]
        penalty = np.float32(sampling.repetition_penalty)
        seen = np.where(seen > 0, seen / penalty, seen * penalty)
        seen -= np.float32(sampling.frequency_penalty) * counts.astype(np.float32)
        row[ids] = seen - np.float32(sampling.presence_penalty)
        return row

    def _draw(self, row: Row, highest: np.float32) -> int:
        """A token drawn from the row; the most likely one has weight 1."""
        sampling = self._sampling
        weights: Row = np.exp((row - highest) / np.float32(self._temperature))
        if sampling.top_k is None and sampling.top_p == 1.0:
            if sampling.min_p == 0.0:
                return _draw_from_all(weights, self._random.random())
            ids = np.flatnonzero(weights >= sampling.min_p)
        else:
            ids = _cut(weights, sampling.top_k, sampling.top_p)
            ids = ids[weights[ids] >= sampling.min_p]
        cumulative = weights[ids].cumsum(dtype=np.float64)
        return int(ids[_position(cumulative, self._random.random())])


def _has_penalties(sampling: Sampling) -> bool:
    return sampling.penalty_window_tokens > 0 and (
        sampling.repetition_penalty != 1.0
        or sampling.frequency_penalty != 0.0
        or sampling.presence_penalty != 0.0
    )


def _position(cumulative: NDArray[np.float64], uniform: float) -> int:
    """Where `uniform` of [0, 1) falls in rising sums; rounding never leads past the end."""
    found = int(cumulative.searchsorted(uniform * cumulative[-1], side="right"))
    return min(found, len(cumulative) - 1)


def _draw_from_all(weights: Row, uniform: float) -> int:
    """A draw over the whole vocabulary: first a block of tokens, then a token in it."""
    starts = np.arange(0, len(weights), _BLOCK)
    blocks = np.add.reduceat(weights, starts, dtype=np.float64).cumsum()
    block = _position(blocks, uniform)
    start = block * _BLOCK
    cumulative = weights[start : start + _BLOCK].cumsum(dtype=np.float64)
    before = blocks[block - 1] if block else 0.0
    rest = (uniform * blocks[-1] - before) / cumulative[-1]
    return start + _position(cumulative, rest)


def _cut(weights: Row, top_k: int | None, top_p: float) -> NDArray[np.int64]:
    """The tokens that top-k and top-p keep, by falling weight."""
    if top_k is None:
        total = float(weights.sum(dtype=np.float64))
        ids = _ranked(weights, lambda found: found.sum(dtype=np.float64) >= top_p * total)
    else:
        ids = _ranked(weights, lambda found: len(found) >= top_k)[:top_k]
        total = float(weights[ids].sum(dtype=np.float64))
    if top_p == 1.0:
        return ids
    cumulative = weights[ids].cumsum(dtype=np.float64)
    return ids[: int(cumulative.searchsorted(top_p * total, side="left")) + 1]


def _ranked(weights: Row, is_enough: Callable[[Row], Any]) -> NDArray[np.int64]:
    """Tokens by falling weight, ties by rising id: as many as `is_enough` asks for, or all that
    can be drawn. Sorts only tokens above a floor, and lowers the floor until they are enough.
    """
    ids = np.empty(0, np.int64)
    for floor in _FLOORS:
        ids = np.flatnonzero(weights > floor)
        if is_enough(weights[ids]):
            break
    return ids[np.argsort(-weights[ids], kind="stable")]


def _with_logprobs(logits: Row, token: int, wanted: int) -> Choice:
    """The token with its natural-log probability and the `wanted` most likely ones."""
    highest = logits.max()
    weights: Row = np.exp(logits - highest)
    offset = float(highest) + math.log(float(weights.sum(dtype=np.float64)))
    best = _ranked(weights, lambda found: len(found) >= wanted)[:wanted] if wanted else ()
    top = tuple((int(other), float(logits[other]) - offset) for other in best)
    return Choice(token, float(logits[token]) - offset, top)


def _why_no_token(logits: Row, mask: Mask | None) -> str:
    if mask is not None and not mask.any():
        return "the constraint allows no further token"
    if np.isnan(logits).any() or np.isposinf(logits).any():
        return "the model's output is not finite; its file or an adapter is damaged"
    return "no token is left to choose from: every allowed one has probability zero"
