"""A small model that guesses what a large one says next.

It follows each generation in a sequence of its own, and guesses greedily, for all generations of a
step at once. Whether that pays is computed before it is done: from the share of its guesses that
were right, from how long its own passes take, and from what the caller says of the longer step.
Where it does not pay it is left out, but for one chance in so many, by which the shares stay known.

What it guesses never changes what is said: the large model keeps the guesses that it would have
sampled (`drivers/decoding.py`). When it fails, generations go on without it. Engine thread only.

Source: Leviathan et al. 2023 (arXiv 2211.17192).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from llmos.drivers.contract import DeviceError, Feed, LanguageModel, ModelInfo
from llmos.kernel.clock import Clock
from llmos.kernel.generation import Generation
from llmos.kernel.pace import Pace
from llmos.kernel.threads import contained
from llmos.syscalls.options import GREEDY

log = logging.getLogger(__name__)

# Longest guess of one generation; a chain of small passes that is longer hardly ever pays.
MOST_GUESSES = 8
# The share of right guesses that is believed at first, and how fast it follows what is seen.
_PRIOR, _LEARN = 0.7, 0.05
# Guessing must promise this much more tokens a second than not guessing: both are estimates.
_LEAST_GAIN = 1.08
# One chance in so many, and more of the first ones, is taken although it does not seem to pay, with
# so many guesses.
_EXPLORE_EVERY, _EXPLORE_LENGTH = 32, 2
# About the tokens that a generation gets by a step with guesses.
_TOKENS_PER_STEP = 3
_LEAST_STEP_S = 1e-9  # a clock that stands still must not divide by zero


_Part = tuple["_Followed", Sequence[int], bool]  # what to feed, and whether to say what follows


class Ask(NamedTuple):
    """A generation that may be guessed for, the most guesses that it has room for, and how many
    tokens it will still say, as far as anybody knows.
    """

    generation: Generation
    most: int
    remaining: int


@dataclass(slots=True)
class _Followed:
    """A generation as this model has it: the tokens in its KV, and the last guesses."""

    sequence: int
    held: list[int] = field(default_factory=list[int])
    sure: int = 0  # so many of them are known to have been said
    guesses: list[int] = field(default_factory=list[int])
    guessed_at: int = 0  # the position of the first of them
    right: float = _PRIOR  # the share of guesses that were right


class DraftModel:
    """Guesses for the generations of a device whose model is `target`.

    Raises: DeviceError when the two models do not read the same tokens, or this one cannot take
    tokens back.
    """

    def __init__(self, driver: LanguageModel, target: LanguageModel, clock: Clock) -> None:
        _check_fits(driver, target)
        self._driver: LanguageModel | None = driver
        self._info: ModelInfo = driver.info
        self._clock = clock
        self._pace = Pace()
        self._followed: dict[int, _Followed] = {}  # by the generation's key, least recent first
        self._free = list(range(driver.info.sequences))
        self._right = _PRIOR
        self._chances = 0
        self._guessed = self._kept = 0
        self._failure: str | None = None

    @property
    def driver(self) -> LanguageModel | None:
        """The open driver; None once it has failed."""
        return self._driver

    @property
    def state(self) -> str:
        """How well it guesses, or why it does not, in words; any thread."""
        if self._failure is not None:
            return f"{self._info.name}: {self._failure}"
        return f"{self._info.name}: {self._kept} of {self._guessed} guesses kept"

    def propose(
        self,
        asks: Sequence[Ask],
        *,
        rows: int,
        step_s: Callable[[int], float],
        ends: Collection[int] = (),
    ) -> dict[int, tuple[int, ...]]:
        """The guesses that pay in the next step, by the generations' keys; often none.

        `step_s` is the seconds of that step by how many guesses each of the generations has, 0
        included; `rows` is how many tokens it gives without any. `ends` are never guessed. All get
        as many guesses as makes tokens a second most.
        """
        asks = [ask for ask in asks if self._has_room(ask)][: self._info.sequences]
        if self._driver is None or not asks:
            return {}
        try:
            return contained(
                lambda: self._propose(asks, rows=rows, step_s=step_s, ends=ends), is_fatal=True
            )
        except DeviceError as problem:
            self._fail(problem)
            return {}

    def ended(self, generation: Generation) -> None:
        """Forget a generation that is over."""
        if one := self._followed.pop(generation.entry.key, None):
            self._empty(one)

    def close(self) -> None:
        """Close the driver."""
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def _propose(
        self,
        asks: Sequence[Ask],
        *,
        rows: int,
        step_s: Callable[[int], float],
        ends: Collection[int],
    ) -> dict[int, tuple[int, ...]]:
        followed = [(ask, self._follow(ask.generation)) for ask in asks]
        for ask, one in followed:
            self._learn(one, ask.generation)
        self._chances += 1
        length = self._length(followed, rows=rows, step_s=step_s)
        return self._guess(followed, length, ends) if length else {}

    def _has_room(self, ask: Ask) -> bool:
        room = self._info.context_tokens - ask.generation.length
        return min(ask.most, room - MOST_GUESSES) >= 1

    # --- whether to guess -------------------------------------------------------------------------

    def _length(
        self,
        followed: Sequence[tuple[Ask, _Followed]],
        *,
        rows: int,
        step_s: Callable[[int], float],
    ) -> int:
        most = min(MOST_GUESSES, *(ask.most for ask, _ in followed))
        if most < 1:
            return 0
        behind = sum(ask.generation.length - len(one.held) for ask, one in followed)
        best, gain = 0, rows / max(step_s(0), _LEAST_STEP_S) * _LEAST_GAIN
        expected, chances = float(rows), [1.0] * len(followed)
        # Each guess is a pass for all. What was not read yet is read once, for all steps to come.
        pass_s = self._pace.pass_s(len(followed))
        steps = max(1, min(ask.remaining for ask, _ in followed) // _TOKENS_PER_STEP)
        reading_s = self._pace.prompt_s(behind, batch_tokens=self._info.batch_tokens)
        cost_s = pass_s + max(0.0, reading_s - pass_s) / steps
        for length in range(1, most + 1):
            chances = [c * one.right for c, (_, one) in zip(chances, followed, strict=True)]
            expected += sum(chances)
            if expected / max(step_s(length) + cost_s, _LEAST_STEP_S) > gain:
                best, gain = length, expected / max(step_s(length) + cost_s, _LEAST_STEP_S)
            cost_s += pass_s
        is_due = self._chances % min(_EXPLORE_EVERY, 1 << self._chances.bit_length() - 1) == 0
        return min(_EXPLORE_LENGTH, most) if best == 0 and is_due else best

    def _learn(self, one: _Followed, generation: Generation) -> None:
        """See which of the last guesses were right."""
        if not one.guesses:
            return
        said = generation.known(one.guessed_at, generation.length)
        for guess, token in zip(one.guesses, said, strict=False):
            is_right = guess == token
            one.right += _LEARN * (is_right - one.right)
            self._right += _LEARN * (is_right - self._right)
            self._kept += is_right
            if not is_right:
                break
        one.guesses = []

    # --- guessing ---------------------------------------------------------------------------------

    def _guess(
        self,
        followed: Sequence[tuple[Ask, _Followed]],
        length: int,
        ends: Collection[int],
    ) -> dict[int, tuple[int, ...]]:
        """Read what was said since and guess step by step; nothing while much is to be read."""
        budget = self._info.batch_tokens
        feeds: list[_Part] = []
        for ask, one in followed:
            if budget == 0:
                break
            missing = self._catch_up(one, ask.generation, budget)
            feeds.append((one, missing, one.sure == ask.generation.length))
            budget -= len(missing)
        said = self._step(feeds)
        guesses: dict[int, list[int]] = {}
        for ask, one in followed:
            token = said.get(one.sequence)
            one.guessed_at = ask.generation.length
            if token is not None and token not in ends:
                guesses[one.sequence] = [token]
        for _ in range(length - 1):
            going = [
                (one, [guesses[one.sequence][-1]], True)
                for _, one in followed
                if one.sequence in guesses
            ]
            if not going:
                break
            said = self._step(going)
            for one, _, _ in going:
                if said[one.sequence] in ends:
                    one.guesses = guesses.pop(one.sequence)
                else:
                    guesses[one.sequence].append(said[one.sequence])
        for _, one in followed:
            one.guesses = guesses.get(one.sequence, one.guesses)
            self._guessed += len(one.guesses)
        return {
            ask.generation.entry.key: tuple(one.guesses) for ask, one in followed if one.guesses
        }

    def _step(self, feeds: Sequence[_Part]) -> dict[int, int]:
        """Feed tokens, and give what follows where that is asked for, by sequence."""
        if not feeds:
            return {}
        assert self._driver is not None
        started = self._clock.now()
        sampled = self._driver.step(
            [Feed(one.sequence, tokens, sample=is_asked) for one, tokens, is_asked in feeds]
        )
        seconds = self._clock.now() - started
        self._pace.observe(
            rows=sum(len(tokens) for _, tokens, _ in feeds), prompt_tokens=0, seconds=seconds
        )
        for one, tokens, _ in feeds:
            one.held.extend(tokens)
        return {one.sequence: one.token for one in sampled}

    def _catch_up(self, one: _Followed, generation: Generation, budget: int) -> Sequence[int]:
        """Take back what was guessed wrong; gives what is still to be read, up to a budget.

        The last token is read again if need be: what follows it is sampled after it.
        """
        assert self._driver is not None
        said = generation.known(one.sure, generation.length)
        guessed = one.held[one.sure :]
        pairs = zip(guessed, said, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        keep = min(one.sure + same, generation.length - 1)
        if keep < len(one.held):
            self._driver.trim(one.sequence, keep)
            del one.held[keep:]
            if keep == 0:
                self._driver.add(one.sequence, sampling=GREEDY)
        missing = generation.known(keep, min(keep + budget, generation.length))
        one.sure = keep + len(missing)
        return missing

    # --- sequences --------------------------------------------------------------------------------

    def _follow(self, generation: Generation) -> _Followed:
        """How this model has a generation; the one that was longest unasked makes room."""
        assert self._driver is not None
        key = generation.entry.key
        one = self._followed.pop(key, None)
        if one is None:
            if not self._free:
                self._empty(self._followed.pop(next(iter(self._followed))))
            one = _Followed(self._free.pop(), right=self._right)
            self._driver.add(one.sequence, sampling=GREEDY)
        self._followed[key] = one
        return one

    def _empty(self, one: _Followed) -> None:
        self._free.append(one.sequence)
        if self._driver is not None and one.held:
            driver = self._driver
            try:
                contained(lambda: driver.trim(one.sequence, 0), is_fatal=True)
            except DeviceError as problem:
                self._fail(problem)

    def _fail(self, problem: DeviceError) -> None:
        log.warning("draft model %s failed and is not used any more: %s", self._info.name, problem)
        self._failure = f"failed: {problem}"
        try:
            self.close()
        except Exception:
            log.warning("draft model %s did not close well", self._info.name, exc_info=True)
            self._driver = None


def _check_fits(driver: LanguageModel, target: LanguageModel) -> None:
    mine, other = driver.info, target.info
    probe = "The quick brown fox, 12 times: naïve café.\n"
    if (
        mine.vocabulary != other.vocabulary
        or mine.end_tokens != other.end_tokens
        or driver.tokenize(probe) != target.tokenize(probe)
    ):
        raise DeviceError(
            f"draft: {mine.name} does not read the same tokens as {other.name}; choose a model "
            "with the same vocabulary"
        )
    if not mine.abilities.can_trim:
        raise DeviceError(f"draft: {mine.name} cannot take back tokens; choose another model")
