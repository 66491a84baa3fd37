"""How sure a success rate is: Wilson's interval of one, and a paired bootstrap of a difference.

Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927;
Efron and Tibshirani, "An Introduction to the Bootstrap", 1993.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

_Z = 1.959963984540054  # 95% of a normal distribution lies within so many deviations
_RESAMPLES = 4000


class Interval(NamedTuple):
    """A value and the bounds that hold it with 95% confidence."""

    value: float
    low: float
    high: float


def success_rate(outcomes: Sequence[float]) -> Interval:
    """The share of successes, outcomes being 0 or 1, with Wilson's interval.

    Raises: ValueError without outcomes.
    """
    n = len(outcomes)
    if not n:
        raise ValueError("a rate needs at least one outcome")
    share = sum(outcomes) / n
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    spread = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # At 0 and 1 the bound is the share itself, which rounding may miss.
    low = 0.0 if share == 0 else max(0.0, centre - spread)
    high = 1.0 if share == 1 else min(1.0, centre + spread)
    return Interval(share, low, high)


def gain(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> Interval:
    """By how much outcomes of the same tasks, in the same order, are better after than before.

    Raises: ValueError for none, or for different numbers of tasks.
    """
    if len(before) != len(after) or not before:
        raise ValueError("outcomes before and after must be of the same tasks")
    differences = [b - a for a, b in zip(before, after, strict=True)]
    draw = random.Random(seed)
    n = len(differences)
    means = sorted(sum(draw.choices(differences, k=n)) / n for _ in range(_RESAMPLES))
    low, high = means[int(0.025 * _RESAMPLES)], means[int(0.975 * _RESAMPLES) - 1]
    return Interval(sum(differences) / n, low, high)
