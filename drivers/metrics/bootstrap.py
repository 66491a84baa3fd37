"""How sure a figure is: confidence intervals by resampling the rows that it was measured on.

A figure is given as a `Measure`: what each row adds to some sums, and the figure as a function of
those sums. Then a resample is a weighted sum of rows, and a thousand of them are one product of
matrices. Refuses to know what the rows are.

Source: Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979 (percentile intervals);
Koehn, "Statistical Significance Tests for Machine Translation Evaluation", 2004 (paired).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llmos.syscalls.errors import SyscallError

RESAMPLES = 1000
LEVEL = 0.95

_CHUNK_CELLS = 4_000_000  # of the matrix of weights, in one go: 32 MB

Array = Any  # a numpy array; numpy is imported where it is used


class Interval(NamedTuple):
    """A figure and the bounds between which `LEVEL` of its resamples lie."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """How much higher the second of two figures is on the same rows."""

    value: float
    low: float
    high: float
    share_above: float  # of the resamples in which the second is higher; ties count half

    @property
    def is_clear(self) -> bool:
        """Whether no difference lies outside the interval."""
        return self.low > 0 or self.high < 0


class Measure(NamedTuple):
    """A figure as a function of sums over rows.

    `rows` is (rows, parts); `figure` maps summed parts (samples, parts) to figures (samples,).
    """

    rows: Array
    figure: Callable[[Array], Array]

    @property
    def value(self) -> float:
        """The figure over all rows."""
        return float(self.figure(self.rows.sum(axis=0, keepdims=True))[0])


def mean_of(values: Sequence[float] | Sequence[bool]) -> Measure:
    """The mean of one number a row. Raises: SyscallError("invalid") without rows."""
    return ratio_of(values, [1.0] * len(values))


def ratio_of(parts: Sequence[float] | Sequence[bool], wholes: Sequence[float]) -> Measure:
    """The sum of `parts` over the sum of `wholes`: a loss over tokens, say; 0 over 0 is 0.

    Raises: SyscallError("invalid") without rows.
    """
    import numpy as np

    if not len(parts):
        raise SyscallError("invalid", "data: there are no rows to measure", field="data")
    rows = np.column_stack((np.asarray(parts, float), np.asarray(wholes, float)))

    def figure(sums: Array) -> Array:
        return divided(sums[:, 0], sums[:, 1])

    return Measure(rows, figure)


def interval(
    measure: Measure, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Interval:
    """A figure with its percentile interval; the same seed gives the same bounds."""
    import numpy as np

    low, high = np.quantile(
        resampled([measure], resamples=resamples, seed=seed)[0], _tails(level)
    ).tolist()
    return Interval(measure.value, low, high)


def difference(
    first: Measure,
    second: Measure,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Difference:
    """Second less first, both resampled by the same rows: what two models share cancels out.

    Raises: SyscallError("invalid") when they were measured on different numbers of rows.
    """
    import numpy as np

    if len(first.rows) != len(second.rows):
        raise SyscallError(
            "invalid",
            f"one model was measured on {len(first.rows)} rows and the other on "
            f"{len(second.rows)}; a paired comparison needs the same rows",
            field="rows",
        )
    one, other = resampled([first, second], resamples=resamples, seed=seed)
    change = other - one
    low, high = np.quantile(change, _tails(level)).tolist()
    above = float((change > 0).mean() + (change == 0).mean() / 2)
    return Difference(second.value - first.value, low, high, above)


def resampled(measures: Sequence[Measure], *, resamples: int, seed: int) -> list[Array]:
    """Each measure's figure on the same `resamples` draws of as many rows, with replacement."""
    import numpy as np

    count = len(measures[0].rows)
    draw = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // count)
    found: list[list[Array]] = [[] for _ in measures]
    for start in range(0, resamples, chunk):
        samples = min(chunk, resamples - start)
        drawn = draw.integers(0, count, (samples, count))
        drawn += np.arange(samples)[:, None] * count
        weights = np.bincount(drawn.ravel(), minlength=samples * count).reshape(samples, count)
        for measure, figures in zip(measures, found, strict=True):
            figures.append(measure.figure(weights @ measure.rows))
    return [np.concatenate(figures) for figures in found]


def divided(above: Array, below: Array) -> Array:
    """Elementwise quotient; 0 where the divisor is 0."""
    import numpy as np

    return np.divide(above, below, out=np.zeros_like(above, float), where=below != 0)


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2
