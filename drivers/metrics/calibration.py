"""Whether a model is as often right as it is sure: reliability and the expected calibration error.

Owns the arithmetic on one confidence a row. A model that says 0.8 and is right 8 times in 10 is
calibrated, however often it is wrong.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmos.syscalls.errors import SyscallError

BINS = 10


class Bin(NamedTuple):
    """The rows whose confidence lies in (low, high]; the first bin has its lower edge too."""

    low: float
    high: float
    rows: int
    confidence: float  # mean; 0 without rows
    accuracy: float  # 0 without rows


class Calibration(NamedTuple):
    """`error` is the mean distance of accuracy from confidence, `largest` that of the worst bin."""

    error: float
    largest: float
    bins: tuple[Bin, ...]

    def metrics(self) -> dict[str, float]:
        """The figures by name."""
        return {"calibration_error": self.error}


def calibration(
    confidence: Sequence[float], is_right: Sequence[bool], *, bins: int = BINS
) -> Calibration:
    """Bins of equal width over the confidence, 0 to 1, that a row's prediction was given.

    Raises: SyscallError("invalid") for no rows, unequal lengths, or what is no probability.
    """
    import numpy as np

    if not len(confidence) or len(confidence) != len(is_right):
        raise SyscallError(
            "invalid",
            f"{len(confidence)} confidences for {len(is_right)} rows; each row needs one",
            field="confidence",
        )
    sure, right = np.asarray(confidence, float), np.asarray(is_right, float)
    if not bool(np.all((sure >= 0) & (sure <= 1 + 1e-6))):  # sums of floats exceed 1 by rounding
        raise SyscallError("invalid", "a confidence is not between 0 and 1", field="confidence")
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    rows = np.bincount(place, minlength=bins)
    means = [
        np.divide(
            np.bincount(place, weights=values, minlength=bins),
            rows,
            out=np.zeros(bins),
            where=rows > 0,
        )
        for values in (sure, right)
    ]
    gaps = np.abs(means[0] - means[1])
    return Calibration(
        error=float((gaps * rows).sum() / len(sure)),
        largest=float(gaps.max()),
        bins=tuple(
            Bin(n / bins, (n + 1) / bins, int(rows[n]), float(means[0][n]), float(means[1][n]))
            for n in range(bins)
        ),
    )
