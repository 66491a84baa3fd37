"""Near-duplicates among rows: MinHash finds candidates, their shingles decide.

Two texts are near-duplicates when the sets of their runs of five characters (case and spacing do
not count) overlap by the threshold (Jaccard). Signatures only choose which pairs are compared, so
nothing is dropped that is not that similar; a pair at the threshold is missed about once in 10^7,
more often only among hundreds of rows that are nearly so alike (a template).
Memory: 1 KiB a row, and 8 bytes for each run of characters.

Source: Broder, "On the Resemblance and Containment of Documents", 1997; banding as in Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from llmos.drivers.rows.content import labels_of, telling_text
from llmos.drivers.rows.kinds import Row
from llmos.drivers.rows.splits import Split

R = TypeVar("R", bound=Row)

SHINGLE_CHARS = 5
THRESHOLD = 0.8
_BANDS, _BAND_ROWS = 32, 4
# Rows made from a template are all alike, yet each must cost the same: so many of those that share
# a band are looked at, and so many of those that share most bands are compared.
_MOST_IN_BUCKET, _MOST_COMPARED = 512, 64
_CHUNK = 65_536  # shingles hashed at once: 64 MiB of hashes
_SEED = 20_260_101


class Duplicate(NamedTuple):
    """A row that repeats one before it; `is_conflict` when their labels differ."""

    row: int  # the index of the row that is left out
    of: int  # and of the one that it repeats
    similarity: float
    is_conflict: bool = False


def near_duplicates(rows: Sequence[Row], *, threshold: float = THRESHOLD) -> list[Duplicate]:
    """Rows that repeat an earlier row which is itself no repetition, in order."""
    index = _Index(threshold)
    found: list[Duplicate] = []
    for number, row in enumerate(rows):
        shingles = shingles_of(telling_text(row))
        match = index.nearest(shingles)
        if match is None:
            index.add(number, shingles)
        else:
            of, similarity = match
            is_conflict = labels_of(rows[of]) != labels_of(row)
            found.append(Duplicate(number, of, similarity, is_conflict))
    return found


def without_near_duplicates(
    rows: Sequence[R], *, threshold: float = THRESHOLD
) -> tuple[list[R], list[Duplicate]]:
    """The rows without repetitions, and what was left out.

    A repetition with another label stays: which of the two labels is right, a person must say.
    """
    repeated = near_duplicates(rows, threshold=threshold)
    dropped = {one.row for one in repeated if not one.is_conflict}
    return [row for i, row in enumerate(rows) if i not in dropped], repeated


class Cleaned(NamedTuple):
    """A split in which no side repeats another, and (dropped origin, origin it repeats) pairs."""

    split: Split[Any]
    dropped: list[tuple[str, str]]


def without_near_leaks(split: Split[R], *, threshold: float = THRESHOLD) -> Cleaned:
    """Drop from training what repeats a row held out, and from `dev` what repeats one of `test`.

    What judges stays whole, so that scores of different trainings remain comparable.
    """
    index = _Index(threshold)
    known: list[Row] = []
    sides: list[list[R]] = []
    dropped: list[tuple[str, str]] = []
    for side in (split.test, split.dev, split.train):
        kept: list[R] = []
        signed: list[tuple[R, Any]] = []
        for row in side:
            shingles = shingles_of(telling_text(row))
            match = index.nearest(shingles)
            if match is None:
                kept.append(row)
                signed.append((row, shingles))
            else:
                dropped.append((row.origin, known[match[0]].origin))
        for row, shingles in signed:
            index.add(len(known), shingles)
            known.append(row)
        sides.append(kept)
    test, dev, train = sides
    return Cleaned(Split(train, dev, test), dropped)


def shingles_of(text: str) -> Any:
    """The distinct runs of characters in a text as sorted 64-bit hashes, (runs,)."""
    import numpy as np

    numpy: Any = np
    plain = " ".join(text.casefold().split()) or " "
    codes = numpy.frombuffer(plain.encode("utf-32-le", "surrogatepass"), dtype=numpy.uint32)
    codes = codes.astype(numpy.uint64)
    width = min(SHINGLE_CHARS, len(codes))
    hashes = numpy.zeros(len(codes) - width + 1, dtype=numpy.uint64)
    for offset in range(width):
        hashes = _mixed(hashes + codes[offset : offset + len(hashes)] + numpy.uint64(1))
    return numpy.unique(hashes)


def similarity(a: Any, b: Any) -> float:
    """The share of runs that two texts have in common, of all that either has."""
    import numpy as np

    numpy: Any = np
    common = len(numpy.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def _digest(shingles: Any) -> bytes:
    return hashlib.blake2b(shingles.tobytes(), digest_size=16).digest()


def _mixed(values: Any) -> Any:
    """Spread 64-bit values over their range (the finaliser of SplitMix64)."""
    import numpy as np

    numpy: Any = np
    u64 = numpy.uint64
    values = (values ^ (values >> u64(30))) * u64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> u64(27))) * u64(0x94D049BB133111EB)
    return values ^ (values >> u64(31))


class _Index:
    """Rows found again by how similar they are."""

    def __init__(self, threshold: float) -> None:
        import numpy as np

        numpy: Any = np
        self._threshold = threshold
        draws = numpy.random.default_rng(_SEED)
        self._factors = draws.integers(
            0, 2**64, size=_BANDS * _BAND_ROWS, dtype=numpy.uint64
        ) | numpy.uint64(1)
        self._buckets: dict[tuple[int, bytes], list[int]] = {}
        self._shingles: dict[int, Any] = {}
        self._equal: dict[bytes, int] = {}  # rows by their whole set of runs
        self._last: tuple[Any, list[tuple[int, bytes]]] | None = None

    def add(self, number: int, shingles: Any) -> None:
        """Remember a row."""
        for key in self._keys(shingles):
            self._buckets.setdefault(key, []).append(number)
        self._shingles[number] = shingles
        self._equal.setdefault(_digest(shingles), number)

    def nearest(self, shingles: Any) -> tuple[int, float] | None:
        """The most similar row at or above the threshold; of equals the first."""
        if (same := self._equal.get(_digest(shingles))) is not None:
            return same, 1.0
        shared = Counter(
            number
            for key in self._keys(shingles)
            for number in self._buckets.get(key, ())[-_MOST_IN_BUCKET:]
        )
        candidates = [number for number, _ in shared.most_common(_MOST_COMPARED)]
        best: tuple[int, float] | None = None
        for number in sorted(candidates):
            other = self._shingles[number]
            shorter, longer = sorted((len(shingles), len(other)))
            if shorter < self._threshold * longer:  # cannot overlap by that much
                continue
            found = similarity(shingles, other)
            if found >= self._threshold and (best is None or found > best[1]):
                best = number, found
        return best

    def _keys(self, shingles: Any) -> list[tuple[int, bytes]]:
        """A row's buckets: one a band of its signature."""
        if self._last is not None and self._last[0] is shingles:
            return self._last[1]
        import numpy as np

        numpy: Any = np
        signature = numpy.full(len(self._factors), 2**64 - 1, dtype=numpy.uint64)
        for start in range(0, len(shingles), _CHUNK):
            part = shingles[start : start + _CHUNK, None] * self._factors
            numpy.minimum(signature, _mixed(part).min(axis=0), out=signature)
        bands = signature.reshape(_BANDS, _BAND_ROWS)
        keys = [(number, band.tobytes()) for number, band in enumerate(bands)]
        self._last = shingles, keys
        return keys
