"""When a program is expected back for what it left in the cache.

An agent calls a model, goes off to a tool, and calls again with more of the same conversation. How
long it is away is learned for each program: a moving mean, and a mean deviation beside it, as TCP
estimates round trips (Jacobson, "Congestion avoidance and control", SIGCOMM'88). From it follows
what eviction wants to know: how long a cached prefix will lie unused.

For a program never seen to return, and for one that is long overdue, as long again as it has been
away already is the guess (Lindy's law), but at least what is usual; ordering by that is ordering by
last use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

_LEARN = 0.3
_OVERDUE_DEVIATIONS = 4.0
_SOONEST_S = 1e-3
_USUAL_S = 1.0  # until the first return
_MOST_PROGRAMS = 10_000  # the one not seen for longest is forgotten


class _Gap(NamedTuple):
    mean_s: float
    deviation_s: float


class Returns:
    """What is known of programs' gaps. `now` is seconds on any monotonic clock."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self._gaps: OrderedDict[int, _Gap] = OrderedDict()
        self._left: dict[int, float] = {}  # when those went that are away
        self._usual_s: float | None = None  # the mean over all programs

    def went(self, program: int) -> None:
        """Note that a program has got its answer, and is away from now on."""
        if program:
            self._left[program] = self.now()
            if len(self._left) > _MOST_PROGRAMS:
                del self._left[min(self._left, key=self._left.__getitem__)]

    def came_back(self, program: int) -> None:
        """Learn how long a program was away, if it was."""
        left_s = self._left.pop(program, None)
        if left_s is None:
            return
        gap_s = max(0.0, self.now() - left_s)
        usual_s = gap_s if self._usual_s is None else self._usual_s
        self._usual_s = usual_s + _LEARN * (gap_s - usual_s)
        known = self._gaps.pop(program, None)
        if known is None:
            self._gaps[program] = _Gap(gap_s, gap_s / 2)
        else:
            surprise_s = gap_s - known.mean_s
            self._gaps[program] = _Gap(
                known.mean_s + _LEARN * surprise_s,
                known.deviation_s + _LEARN * (abs(surprise_s) - known.deviation_s),
            )
        if len(self._gaps) > _MOST_PROGRAMS:
            self._gaps.popitem(last=False)

    def remaining_s(self, program: int, *, since_s: float) -> float:
        """How long until a program is expected back for what it last used at `since_s`."""
        away_s = max(0.0, self.now() - since_s)
        gap = self._gaps.get(program)
        if gap is None or away_s > gap.mean_s + _OVERDUE_DEVIATIONS * gap.deviation_s:
            usual_s = _USUAL_S if self._usual_s is None else self._usual_s
            return max(away_s, usual_s, _SOONEST_S)
        # Somebody a little late is still expected any moment.
        return max(gap.mean_s - away_s, gap.deviation_s / 2, _SOONEST_S)
