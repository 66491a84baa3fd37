"""How long a device's work takes, learned from what it did.

A step is two passes over the weights: one row for each sequence that decodes, and one row for each
prompt token. A pass over so many rows takes about the same time whoever they belong to, so one
curve, seconds by rows, tells both. It is kept at a few sizes and learned from every step, so that
it follows depth, load and heat.

Pure and without a clock; the engine thread feeds it, and a simulation can fill it from a table.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

# Sizes at which the curve is kept, in rows; between them it is a straight line.
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
# Weight of a new observation. A step now and then is slow for reasons of the machine.
_LEARN = 0.2
_MOST_SURPRISE = 4.0
# A pass is slow for many reasons and fast for none: an estimate so far above what was seen is a
# stalled step's, and is left quickly.
_FAR_BELOW, _RECOVER = 0.5, 0.6
# Of a pass's time, what the smallest one takes at least, as long as none was seen.
_LEAST_SHARE = 0.1
_LEAST_S = 1e-9  # a clock that stands still must not make estimates vanish


class Pace:
    """Seconds of a device's passes and copies.

    `passes` are known seconds by rows; without any, guesses serve until the first steps: they only
    have to be of the right order for a few iterations.
    """

    def __init__(self, passes: Mapping[int, float] | None = None) -> None:
        known = dict(passes or {})
        self._is_known = {size: size in known for size in _SIZES}
        self._passes: dict[int, float] = {}
        for size in _SIZES:
            self._passes[size] = _along(known, size) if known else 0.005 + 0.001 * size
        self._copy_token_s = 5e-6

    # --- asking ---

    def pass_s(self, rows: int) -> float:
        """Seconds of one pass over so many rows; 0 for none."""
        return _along(self._passes, rows) if rows else 0.0

    def step_s(self, *, rows: int, prompt_tokens: int) -> float:
        """Seconds of a step that decodes `rows` rows beside `prompt_tokens` prompt tokens."""
        return self.pass_s(rows) + self.pass_s(prompt_tokens)

    def prompt_s(self, tokens: int, *, batch_tokens: int = 512) -> float:
        """Seconds to compute a prompt of so many tokens from nothing."""
        whole, rest = divmod(tokens, batch_tokens)
        return whole * self.pass_s(batch_tokens) + self.pass_s(rest)

    def rows_within(self, seconds: float, *, most: int) -> int:
        """The most rows, up to `most`, that one pass computes in a time; 0 when not even one."""
        if self.pass_s(most) <= seconds:
            return most
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            if self.pass_s(middle) <= seconds:
                low = middle
            else:
                high = middle
        return low

    def prompt_within(self, seconds: float, *, batch_tokens: int = 512) -> int:
        """The most prompt tokens that are computed from nothing in a time."""
        whole, rest_s = divmod(seconds, self.pass_s(batch_tokens))
        return int(whole) * batch_tokens + self.rows_within(rest_s, most=batch_tokens)

    def copy_s(self, tokens: int) -> float:
        """Seconds to save or to restore the KV of so many tokens."""
        return self._copy_token_s * tokens

    # --- learning ---

    def observe(self, *, rows: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from a step.

        Of a mixed step the decoding part is taken as known, and the rest as the prompt's.
        """
        if prompt_tokens == 0:
            self._learn(rows, seconds)
        elif rows == 0:
            self._learn(prompt_tokens, seconds)
        else:
            self._learn(prompt_tokens, max(seconds - self.pass_s(rows), 0.2 * seconds))

    def observe_copy(self, *, tokens: int, seconds: float) -> None:
        """Learn from a saved or restored sequence."""
        if tokens:
            self._copy_token_s += _LEARN * (seconds / tokens - self._copy_token_s)

    def _learn(self, rows: int, seconds: float) -> None:
        """Move the curve at the nearest sizes towards an observation."""
        estimate = self.pass_s(rows)
        at = bisect_left(_SIZES, rows)
        near = {_SIZES[min(at, len(_SIZES) - 1)], _SIZES[max(0, min(at, len(_SIZES)) - 1)]}
        if rows in _SIZES:
            near = {rows}
        ratio = max(seconds, _LEAST_S) / estimate
        learn = _LEARN if ratio > _FAR_BELOW else _RECOVER
        for size in near:
            if not self._is_known[size]:
                self._is_known[size] = True
                self._passes[size] *= ratio
            else:
                self._passes[size] *= 1 + learn * (min(ratio, _MOST_SURPRISE) - 1)
        self._keep_rising(near)

    def _keep_rising(self, near: set[int]) -> None:
        """More rows never take less time; sizes never seen follow those that were."""
        known = [size for size in _SIZES if self._is_known[size]]
        for size in _SIZES:
            if not self._is_known[size]:
                self._passes[size] = _along({one: self._passes[one] for one in known}, size)
        low, high = min(near), max(near)
        self._passes[low] = min(self._passes[low], self._passes[high])
        for size in _SIZES:
            if size > high:
                self._passes[size] = max(self._passes[size], self._passes[high])
            elif size < low:
                self._passes[size] = min(self._passes[size], self._passes[low])


def _along(known: Mapping[int, float], rows: int) -> float:
    """The curve at some rows: straight between known sizes, proportional above and below."""
    sizes = sorted(known)
    at = bisect_left(sizes, rows)
    if at < len(sizes) and sizes[at] == rows:
        return known[sizes[at]]
    if at == 0:
        # Too little rather than too much: a plan that believes small passes to be cheap makes some,
        # and learns; one that believes them dear never would.
        first = sizes[0]
        return known[first] * max(rows / first, _LEAST_SHARE)
    if at == len(sizes):
        return known[sizes[-1]] * rows / sizes[-1]
    low, high = sizes[at - 1], sizes[at]
    share = (rows - low) / (high - low)
    return known[low] + share * (known[high] - known[low])
