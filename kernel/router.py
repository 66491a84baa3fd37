"""Which device will finish a call first: predicted from what each has to do and how fast it was.

Pure: it is told when generations begin and end, and never asks a device. For a device it keeps the
seconds that a token of a prompt and a token of an answer took, as a line over the number of
generations at once: on a processor each one more slows all, on a large server hardly. A device that
was never used counts as fast as the fastest that was, so that it gets its chance.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Kind = Literal["prefill", "decode"]

# What a token is taken to last before anything was measured; only ratios matter.
_GUESS_S: dict[Kind, float] = {"prefill": 0.002, "decode": 0.01}
_FORGET = 0.97  # an observation's weight after the next one
_PRIOR = 0.5  # the slope before it is known: doubling the load costs half as much again
_REMEMBERED_PROGRAMS = 4096
_LONGEST_ANSWER = 256  # nothing is known of answers at first, and limits are often generous


class Ask(NamedTuple):
    """What a call wants. Token counts may be estimates; the ratio of devices is what matters."""

    program: int
    prompt_tokens: int
    max_tokens: int


class Site(NamedTuple):
    """A device as far as its place in the order goes.

    `opening_s` is how long it takes until it can begin. Devices on the same `processor` slow each
    other.
    """

    name: str
    slots: int
    processor: str
    opening_s: float = 0.0


class Used(NamedTuple):
    """What a generation came to."""

    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    prefill_s: float
    decode_s: float


class Line:
    """y over x by least squares, newer observations counting more; x and y are positive.

    While x hardly varied the slope is a guess, in proportion to y.
    """

    def __init__(self) -> None:
        self._sums = [0.0] * 5  # of 1, x, y, x * x, x * y

    @property
    def is_known(self) -> bool:
        return self._sums[0] > 0

    def observe(self, x: float, y: float) -> None:
        new = (1.0, x, y, x * x, x * y)
        self._sums = [old * _FORGET + one for old, one in zip(self._sums, new, strict=True)]

    def at(self, x: float) -> float:
        """y at x, at least a tenth of the mean. One observation must have been made."""
        weight, *sums = self._sums
        mean_x, mean_y, mean_xx, mean_xy = (one / weight for one in sums)
        variance = max(0.0, mean_xx - mean_x**2)
        covariance = mean_xy - mean_x * mean_y
        guess = _PRIOR * mean_y / mean_x
        slope = (covariance + guess) / (variance + 1.0)
        return max(0.1 * mean_y, mean_y + slope * (x - mean_x))


class _Work(NamedTuple):
    ask: Ask
    load: int
    sharing: int


@dataclass(slots=True)
class _Known:
    """What is known of one device: seconds a token, and the generations that it has."""

    rates: dict[Kind, Line] = field(default_factory=lambda: {"prefill": Line(), "decode": Line()})
    work: dict[Hashable, _Work] = field(default_factory=dict[Hashable, _Work])


class Router:
    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        # the device that a program was last on, and the tokens that it left there
        self._last: OrderedDict[int, tuple[str, int]] = OrderedDict()
        self._answer = Line()  # a constant: tokens of an answer, at x 1

    def order(self, sites: Sequence[Site], ask: Ask) -> list[str]:
        """The devices, the one that will finish first at the front; ties as given."""
        return [site.name for site in sorted(sites, key=lambda one: self.finish_s(one, ask, sites))]

    def finish_s(self, site: Site, ask: Ask, sites: Iterable[Site]) -> float:
        """Seconds until a device would have finished a call that it is given now."""
        work = self._of(site.name).work
        load = min(site.slots, len(work) + 1)
        sharing = self._sharing(site, sites)
        prefill_s = sharing * self._rate_s("prefill", site.name, load)
        decode_s = sharing * self._rate_s("decode", site.name, load)
        cached = self._cached(site.name, ask)
        own_s = (ask.prompt_tokens - cached) * prefill_s + self._answers(ask) * decode_s
        queued = len(work) + 1 - site.slots
        wait_s = 0.0
        if queued > 0:
            service_s = sum(
                one.ask.prompt_tokens * prefill_s + self._answers(one.ask) * decode_s
                for one in work.values()
            )
            wait_s = service_s / len(work) * queued / site.slots
        return site.opening_s + wait_s + own_s

    def began(self, site: Site, key: Hashable, ask: Ask, sites: Iterable[Site]) -> None:
        """A device was given a generation."""
        work = self._of(site.name).work
        load = min(site.slots, len(work) + 1)
        work[key] = _Work(ask, load, self._sharing(site, sites))

    def ended(self, name: str, key: Hashable, used: Used | None) -> None:
        """A generation is over; `used` None tells nothing of the device's speed."""
        known = self._of(name)
        work = known.work.pop(key, None)
        if work is None or used is None:
            return
        computed = used.prompt_tokens - used.cached_tokens
        if computed > 0 and used.prefill_s > 0:
            rate_s = used.prefill_s / computed / work.sharing
            known.rates["prefill"].observe(work.load, rate_s)
        if used.new_tokens > 1 and used.decode_s > 0:
            rate_s = used.decode_s / (used.new_tokens - 1) / work.sharing
            known.rates["decode"].observe(work.load, rate_s)
        if used.new_tokens > 0:
            self._answer.observe(1.0, used.new_tokens)
        self._last[work.ask.program] = (name, used.prompt_tokens + used.new_tokens)
        self._last.move_to_end(work.ask.program)
        if len(self._last) > _REMEMBERED_PROGRAMS:
            self._last.popitem(last=False)

    # --- internals --------------------------------------------------------------------------------

    def _of(self, name: str) -> _Known:
        return self._known.setdefault(name, _Known())

    def _rate_s(self, kind: Kind, name: str, load: int) -> float:
        """Seconds a token on a device that has its processor to itself."""
        line = self._of(name).rates[kind]
        if line.is_known:
            return line.at(load)
        others = (known.rates[kind] for known in self._known.values())
        return min((one.at(load) for one in others if one.is_known), default=_GUESS_S[kind])

    def _sharing(self, site: Site, sites: Iterable[Site]) -> int:
        """How many devices, this one included, would want its processor."""
        return 1 + sum(
            bool(self._of(other.name).work)
            for other in sites
            if other.name != site.name and other.processor == site.processor
        )

    def _cached(self, name: str, ask: Ask) -> int:
        """Tokens of a prompt that a device probably holds."""
        device, tokens = self._last.get(ask.program, ("", 0))
        return min(tokens, ask.prompt_tokens) if device == name else 0

    def _answers(self, ask: Ask) -> float:
        typical = self._answer.at(1.0) if self._answer.is_known else _LONGEST_ANSWER
        return min(ask.max_tokens, typical)
