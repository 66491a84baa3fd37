"""Vector indexes by note id, in memory: exact while there are few, lists when there are many.

`FlatIndex` compares a query with every vector. `ListIndex` keeps vectors in lists by the nearest of
some centres and looks at the lists whose centres are nearest to the query (FAISS's inverted file):
how many, was chosen by measured recall when it was built (`vectors_build.py`). Both are derived
from the database and never the truth.

Vectors are unit length, so the inner product is the cosine. Searches may run side by side; whoever
adds or removes must be alone (`nearest.py` sees to it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from llmos.memory.faiss_library import faiss_library, threads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmos.memory.allowed import Allowed

    Ids = NDArray[np.int64]
    Matrix = NDArray[np.float32]

Found = list[tuple[int, float]]

PROBES_ARE_FOR = 10  # neighbours: for so many the probes were chosen
_ID_BYTES = 8
_SMALL, _LARGE = 1e-200, 1e200  # squares of lengths between them are exact enough as they are
_MAP_ENTRY_BYTES = 40  # an entry of the map from id to place


class Recall(NamedTuple):
    """The share of the true nearest that searches found, over so many searches for `at` each."""

    share: float
    searches: int
    at: int


EXACT = Recall(1.0, 0, 0)


class Index(Protocol):
    """What both kinds have in common."""

    kind: str
    dimensions: int
    recall: Recall
    library: Any  # the FAISS index

    def __len__(self) -> int: ...

    @property
    def size_bytes(self) -> int:
        """Resident bytes."""
        ...

    @property
    def ids(self) -> Ids:
        """The ids in the index, sorted."""
        ...

    def place(self, vectors: Matrix) -> Ids | None:
        """Where vectors belong, for `add`: the costly part, which needs not be alone."""
        ...

    def add(self, ids: Ids, vectors: Matrix, places: Ids | None = None) -> None:
        """Add vectors `(len(ids), dimensions)` under new ids."""
        ...

    def remove(self, ids: Ids) -> None:
        """Remove those of the ids that are here."""
        ...

    def search(self, unit: Matrix, k: int, allowed: Allowed | None = None) -> Found:
        """The k nearest to a unit vector as (id, cosine), nearest first; of `allowed`, if given."""
        ...

    def sees_few(self, allowed: Allowed) -> bool:
        """Whether reading the allowed vectors one by one is faster than a search."""
        ...


class FlatIndex:
    """Every vector, compared with every query: exact."""

    kind = "flat"
    recall = EXACT

    def __init__(self, dimensions: int, library: Any = None) -> None:
        faiss = faiss_library()

        self.dimensions = dimensions
        self.library = library or faiss.IndexIDMap2(faiss.IndexFlatIP(dimensions))

    def __len__(self) -> int:
        return int(self.library.ntotal)

    @property
    def ids(self) -> Ids:
        faiss = faiss_library()

        return np.sort(faiss.vector_to_array(self.library.id_map).astype(np.int64))

    @property
    def size_bytes(self) -> int:
        return len(self) * (4 * self.dimensions + _ID_BYTES + _MAP_ENTRY_BYTES)

    def place(self, vectors: Matrix) -> Ids | None:
        return None

    def add(self, ids: Ids, vectors: Matrix, places: Ids | None = None) -> None:
        if len(ids):
            self.library.add_with_ids(vectors, ids)

    def remove(self, ids: Ids) -> None:
        if len(ids):
            self.library.remove_ids(ids)

    def search(self, unit: Matrix, k: int, allowed: Allowed | None = None) -> Found:
        faiss = faiss_library()

        selector = selector_of(allowed)
        parameters = None if selector is None else faiss.SearchParameters(sel=selector)
        with threads(1):
            scores, ids = self.library.search(unit.reshape(1, -1), k, params=parameters)
        return pairs(ids, scores)

    def sees_few(self, allowed: Allowed) -> bool:
        return False


class ListIndex:
    """Vectors in 16 bits, in lists by their nearest centre, of which a search looks at `probes`.

    Sixteen bits change a cosine by 0.00002 and halve both the memory and what a search reads.
    """

    kind = "ivf"

    def __init__(
        self, library: Any, *, probes: int, fewest: int, recall: Recall, trained_on: int
    ) -> None:
        """`fewest` probes would do, and a search without a filter looks at `probes`."""
        self.library = library
        self.dimensions = int(library.d)
        self.lists = int(library.nlist)
        self.probes = probes
        self.fewest = fewest
        self.recall = recall
        self.trained_on = trained_on

    @classmethod
    def around(cls, centres: Matrix, *, trained_on: int) -> ListIndex:
        """An empty index with a list for each of the centres `(n, dimensions)`."""
        faiss = faiss_library()

        lists, dimensions = centres.shape
        nearest_centre = faiss.IndexFlatIP(dimensions)
        nearest_centre.add(centres)
        library = faiss.IndexIVFScalarQuantizer(
            nearest_centre,
            dimensions,
            lists,
            faiss.ScalarQuantizer.QT_fp16,
            faiss.METRIC_INNER_PRODUCT,
            False,  # whole vectors, not what is left of them beside the centre
        )
        library.train(centres)  # sixteen-bit numbers need none; this marks the index as trained
        library.set_direct_map_type(faiss.DirectMap.Hashtable)  # so that a removal is no search
        return cls(library, probes=1, fewest=1, recall=EXACT, trained_on=trained_on)

    def __len__(self) -> int:
        return int(self.library.ntotal)

    @property
    def ids(self) -> Ids:
        faiss = faiss_library()

        lists = self.library.invlists
        parts: list[Ids] = []
        for number in range(self.lists):
            size = lists.list_size(number)
            if size:
                parts.append(faiss.rev_swig_ptr(lists.get_ids(number), size).copy())
        return np.sort(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)

    @property
    def size_bytes(self) -> int:
        centres = 4 * self.dimensions * self.lists
        return centres + len(self) * (2 * self.dimensions + _ID_BYTES + _MAP_ENTRY_BYTES)

    def place(self, vectors: Matrix) -> Ids | None:
        _, places = self.library.quantizer.search(vectors, 1)
        return places.ravel()

    def add(self, ids: Ids, vectors: Matrix, places: Ids | None = None) -> None:
        faiss = faiss_library()

        if not len(ids):
            return
        if places is None:
            places = self.place(vectors)
        matrix = np.ascontiguousarray(vectors, dtype=np.float32)
        pointer = faiss.swig_ptr
        self.library.add_core(len(ids), pointer(matrix), pointer(ids), pointer(places))

    def remove(self, ids: Ids) -> None:
        faiss = faiss_library()

        if len(ids):
            self.library.remove_ids(faiss.IDSelectorArray(len(ids), faiss.swig_ptr(ids)))

    def search(self, unit: Matrix, k: int, allowed: Allowed | None = None) -> Found:
        there = len(self) if allowed is None else allowed.count
        # A filter that lets through one in ten is as if ten times as many neighbours were asked
        # for: they lie in about ten times as many lists. Without one, further neighbours lie in the
        # same lists for the most part.
        more = max(1.0, k / PROBES_ARE_FOR) ** 0.5 * len(self) / max(there, 1)
        probes = min(self.lists, max(self.probes, math.ceil(self.fewest * more)))
        if allowed is not None and probes < self.lists and self._leaves_out_near(unit, allowed):
            probes = self.lists
        found = self._search(unit, k, probes, allowed)
        if len(found) < min(k, there) and probes < self.lists:
            return self._search(unit, k, self.lists, allowed)
        return found

    def _leaves_out_near(self, unit: Matrix, allowed: Allowed) -> bool:
        """Whether a filter lets through far less of the nearest lists than of all.

        Then what is nearest lies in no lists that the centres tell, as in data without clusters.
        """
        faiss = faiss_library()

        with threads(1):
            nearest = self.library.quantizer.search(unit.reshape(1, -1), self.fewest)[1][0]
        lists = self.library.invlists
        held = [
            faiss.rev_swig_ptr(lists.get_ids(place), size)
            for place in nearest.tolist()
            if (size := lists.list_size(place))
        ]
        if not held:
            return False
        ids: Ids = np.concatenate(held)
        there = np.count_nonzero(allowed.has(ids))
        return bool(there * len(self) < _FAR_LESS * len(ids) * allowed.count)

    def _search(self, unit: Matrix, k: int, probes: int, allowed: Allowed | None) -> Found:
        faiss = faiss_library()

        if allowed is None:
            parameters = _looks_at(probes)
        else:
            parameters = faiss.SearchParametersIVF(sel=selector_of(allowed), nprobe=probes)
        with threads(1):
            scores, ids = self.library.search(unit.reshape(1, -1), k, params=parameters)
        return pairs(ids, scores)

    def sees_few(self, allowed: Allowed) -> bool:
        # A search for so few tests most ids, 8 ns each; reading a vector takes 2 us, or 20 from a
        # page that was not used for long.
        return allowed.count * _READ_COSTS_TESTS < len(self)


_READ_COSTS_TESTS = 1500
_FAR_LESS = 0.5  # of the share that a filter lets through of all


@lru_cache(maxsize=256)
def _looks_at(probes: int) -> Any:
    """FAISS's parameters of a search without a filter, which take 4 us to make, or 40 when cold."""
    return faiss_library().SearchParametersIVF(nprobe=probes)


def selector_of(allowed: Allowed | None) -> Any:
    """FAISS's form of a set, which shares its bits; None for None."""
    faiss = faiss_library()

    if allowed is None:
        return None
    bits = allowed.bits
    selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    selector.bits_kept = bits  # as long as the selector is
    return selector


def pairs(ids: Ids, scores: Matrix) -> Found:
    """One query's result as pairs; FAISS fills up with -1."""
    found = zip(ids[0].tolist(), scores[0].tolist(), strict=True)
    return [(note, score) for note, score in found if note >= 0]


def nearest_of(ids: Ids, vectors: Matrix, unit: Matrix, k: int) -> Found:
    """The k nearest of a few vectors, exactly; equally near ones by id."""
    scores = vectors @ unit.ravel()
    order = np.lexsort((ids, -scores))[:k]
    return [(int(ids[place]), float(scores[place])) for place in order]


def unit_vector(vector: Sequence[float] | Matrix, dimensions: int) -> Matrix:
    """A vector as `(1, dimensions)` of unit length. Raises: ValueError as `unit_vectors`."""
    row = np.array(vector, dtype=np.float64, ndmin=2)
    if row.shape == (1, dimensions):
        square = float(row[0].dot(row[0]))
        if _SMALL < square < _LARGE:
            return (row * square**-0.5).astype(np.float32)
    return unit_vectors(row.reshape(1, -1), dimensions)


def unit_vectors(
    vectors: Sequence[Sequence[float]] | NDArray[np.floating[Any]], dimensions: int
) -> Matrix:
    """Vectors as a matrix `(len(vectors), dimensions)` of unit rows.

    Raises: ValueError that says what is wrong: another dimension, not finite, or all zero.
    """
    if wrong := {len(vector) for vector in vectors} - {dimensions}:
        raise ValueError(f"a vector has {min(wrong)} dimensions, the store {dimensions}")
    matrix = np.asarray(vectors, dtype=np.float64).reshape(len(vectors), dimensions)
    squares = np.einsum("ij,ij->i", matrix, matrix)
    if not (squares.min(initial=1.0) > _SMALL and squares.max(initial=1.0) < _LARGE):
        matrix = _in_range(matrix)
        squares = np.einsum("ij,ij->i", matrix, matrix)
    return (matrix / np.sqrt(squares)[:, None]).astype(np.float32)


def _in_range(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of the same directions whose squares neither overflow nor vanish."""
    if not np.isfinite(matrix).all():
        raise ValueError("a vector holds a value that is not a finite number")
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    if not largest.all():
        raise ValueError("a vector is all zeros and has no direction")
    return matrix / largest
