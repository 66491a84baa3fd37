"""Guesses at what a generation says next, from what it has read and said: prompt lookup.

Much of what agents write repeats what they read: quotations, edited code, lists, names. When the
last tokens stood in the text before, what followed them there is a guess at what follows here. A
driver computes guesses along with the token that they follow, and keeps those that it would have
sampled (`drivers/decoding.py`), so a wrong guess costs time and never a word.

Whether guessing pays depends on the text and on the device. The text: for every token it is checked
whether it was what would have been guessed, guessed or not, so the share of right guesses is known
before any was tried; it is kept by how many tokens agreed before, since long agreement goes on. The
device: what a longer step costs is asked of the caller, who measures it.

Pure: no device, no clock, no chance. Constant time for a token.

Sources: speculative decoding, Leviathan et al. 2023 (arXiv 2211.17192); prompt lookup, Saxena 2023;
drafts cut to what pays by acceptance and cost, as in SpecInfer's and vLLM's dynamic speculation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence

# Tokens that must agree before anything is guessed; the longer is looked up first.
_LONG, _SHORT = 3, 2
# Longest draft of one generation. Beyond it a device's cost by rows is hardly flat any more.
MOST_GUESSES = 15
# Shares of right guesses by tokens that agreed before (2, 3, 4 and 5, 6 to 9, 10 and more) that are
# believed at first, and how fast they follow what is seen.
_PRIORS = (0.2, 0.35, 0.6, 0.8, 0.9)
_CLASS_OF = (0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4)
_LEARN = 0.1
# A draft must promise this much more tokens a second than none: costs and shares are estimates.
_LEAST_GAIN = 1.08
# What longer steps cost is learned by taking some: one in so many chances goes beyond what seems
# best, when its last guess is more likely right than not.
_EXPLORE_EVERY = 16
_LEAST_STEP_S = 1e-9  # a clock that stands still must not divide by zero


class Drafter:
    """Guesses for one generation, whose prompt is `prompt`; `ends` are never guessed."""

    def __init__(self, prompt: Sequence[int] = (), *, ends: Collection[int] = ()) -> None:
        self._ends = ends
        self._tokens: list[int] = []
        # Where each triple and pair of tokens last ended, so far as it is known what followed.
        self._triples: dict[tuple[int, ...], int] = {}
        self._pairs: dict[tuple[int, ...], int] = {}
        # Where the next token is expected to stand already, and how many before it agree.
        self._source: int | None = None
        self._agreed = 0
        self._right = list(_PRIORS)
        self._chances = 0
        self.read(prompt)

    def read(self, tokens: Sequence[int]) -> None:
        """Take tokens that nobody had to guess: a prompt, or what a constraint forced."""
        if not tokens:
            return
        held = self._tokens
        start = max(len(held) - _LONG, 0)
        held.extend(tokens)
        new, end = held[start:], len(held)
        # The last pair and triple wait until it is known what follows them.
        self._triples.update(
            zip(zip(new, new[1:], new[2:], strict=False), range(start + _LONG, end), strict=False)
        )
        self._pairs.update(zip(itertools.pairwise(new), range(start + _SHORT, end), strict=False))
        self._look_up()

    def observe(self, tokens: Sequence[int]) -> None:
        """Take tokens that were sampled, and learn whether they were what would be guessed."""
        held = self._tokens
        for token in tokens:
            is_right = self._source is not None and held[self._source] == token
            if self._source is not None:
                kind = _class_of(self._agreed)
                self._right[kind] += _LEARN * (is_right - self._right[kind])
            end = len(held)
            if end >= _LONG:
                self._triples[held[-3], held[-2], held[-1]] = end
            if end >= _SHORT:
                self._pairs[held[-2], held[-1]] = end
            held.append(token)
            if is_right:
                assert self._source is not None
                self._source += 1
                self._agreed += 1
            else:
                self._look_up()

    def propose(
        self, *, most: int, step_s: Callable[[int], float], others: int = 0
    ) -> tuple[int, ...]:
        """The guesses that pay in the next step, `most` at most; often none.

        `step_s` is the seconds of that step by how many guesses it carries for this generation, 0
        included; `others` are the generations that get a token by it besides this one. A draft is
        as long as makes tokens a second most. Guesses are taken to cost no more than in proportion:
        what is known of long steps is from few, and one of those may have been slow by chance.
        """
        if self._source is None or most < 1:
            return ()
        self._chances += 1
        rows, first_s = others + 1.0, max(step_s(0), _LEAST_STEP_S)
        best, gain = 0, rows / first_s * _LEAST_GAIN
        expected, furthest = rows, 0
        for count, chance in enumerate(self._survival(min(most, MOST_GUESSES)), 1):
            expected += chance
            if chance > 0.5:
                furthest = count
            cost_s = min(max(step_s(count), first_s), first_s * (rows + count) / rows)
            if expected / cost_s > gain:
                best, gain = count, expected / cost_s
        if self._chances % _EXPLORE_EVERY == 0:
            best = max(best, min(2 * best + 2, furthest))
        return self._guesses(best)

    def _survival(self, most: int) -> Iterator[float]:
        """The chance that the first guess is right, the first two are, and so on."""
        chance = 1.0
        for index in range(most):
            chance *= self._right[_class_of(self._agreed + index)]
            yield chance

    def _guesses(self, count: int) -> tuple[int, ...]:
        """What followed before. A text that repeats itself is expected to do so again: where it
        ends, the guesses themselves go on.
        """
        assert self._source is not None
        found = self._tokens[self._source : self._source + count]
        period = len(self._tokens) - self._source
        while len(found) < count:
            found.append(found[len(found) - period])
        for index, token in enumerate(found):
            if token in self._ends:
                return tuple(found[:index])
        return tuple(found)

    def _look_up(self) -> None:
        """Find where the last tokens stood before."""
        last = tuple(self._tokens[-_LONG:])
        self._source, self._agreed = self._triples.get(last), _LONG
        if self._source is None:
            self._source, self._agreed = self._pairs.get(last[-_SHORT:]), _SHORT


def _class_of(agreed: int) -> int:
    return _CLASS_OF[min(agreed, len(_CLASS_OF) - 1)]
