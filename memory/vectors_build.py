"""Building a `ListIndex`: centres by k-means, its vectors, and how many lists a search looks at.

The last is measured, not assumed: for a sample of the vectors the true nearest are computed on the
way, and the fewest lists are taken that find `TARGET` of them, though never with less in them than
`LEAST_LOOKED_AT`. So data without clusters gets many probes and data with clusters few, and what
the store reports as its recall is what was measured.

Refuses to know where vectors come from and what happens to the notes meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llmos.memory.faiss_library import faiss_library, threads
from llmos.memory.vectors import PROBES_ARE_FOR, ListIndex, Recall

if TYPE_CHECKING:
    from llmos.memory.vectors import Ids, Matrix

TARGET = 0.99  # more than the 0.98 promised: it is measured on a sample
# Vectors, which take half a millisecond; to embed the query takes several. With fewer, recall would
# be lost for a time that nobody notices: of 490,000 in clusters, 1,200 gave 0.985, 16,000 0.997.
LEAST_LOOKED_AT = 16_384
NEIGHBOURS = PROBES_ARE_FOR  # the recall of so many is measured
SEARCHES = 256
LISTS_PER_ROOT = 2.0  # lists for each unit of the square root of how many vectors there are
VECTORS_PER_LIST = 64  # k-means learns from so many for each list
ROUNDS = 8  # of k-means
_SIXTEEN_BITS = 2.0**-10  # twice the relative error of one number


class Sample(NamedTuple):
    """Vectors to learn from, `(n, dimensions)`, with their ids."""

    ids: Ids
    vectors: Matrix


def lists_for(count: int) -> int:
    """How many lists are good for so many vectors."""
    return max(1, round(LISTS_PER_ROOT * count**0.5))


def sample_size(count: int) -> int:
    """How many vectors a build wants to learn from."""
    return min(count, max(VECTORS_PER_LIST * lists_for(count), 2 * SEARCHES))


def build(
    sample: Sample,
    everything: Iterator[tuple[Ids, Matrix]],
    count: int,
    *,
    cores: int,
    should_stop: Callable[[], bool],
) -> ListIndex | None:
    """An index of all of `everything`, about `count` vectors; None when it should stop.

    `sample` is some of them in random order.
    """
    with threads(cores):
        centres = _centres(sample.vectors, lists_for(count), should_stop)
        if centres is None:
            return None
        index = ListIndex.around(centres, trained_on=count)
        nearest = _Nearest(sample.ids[:SEARCHES], sample.vectors[:SEARCHES])
        for ids, vectors in everything:
            if should_stop():
                return None
            index.add(ids, vectors)
            nearest.look_at(ids, vectors)
        _choose_probes(index, nearest)
        return index


def _centres(vectors: Matrix, lists: int, should_stop: Callable[[], bool]) -> Matrix | None:
    """The centres of k-means on the unit sphere, `(lists, dimensions)`."""
    faiss = faiss_library()

    centres = None
    for _ in range(ROUNDS):
        if should_stop():
            return None
        rounds = faiss.Kmeans(
            vectors.shape[1],
            lists,
            niter=1,
            spherical=True,
            seed=1,
            min_points_per_centroid=1,
            max_points_per_centroid=1 << 30,
        )
        rounds.train(vectors, init_centroids=centres)
        centres = rounds.centroids
    return centres


class _Nearest:
    """The true nearest of some vectors among those looked at, without the vectors themselves."""

    def __init__(self, own: Ids, vectors: Matrix) -> None:
        self.own = own
        self.vectors = np.ascontiguousarray(vectors)
        self.ids: Ids = np.full((len(own), NEIGHBOURS), -1, dtype=np.int64)
        self.scores: Matrix = np.full((len(own), NEIGHBOURS), -2.0, dtype=np.float32)

    def look_at(self, ids: Ids, vectors: Matrix) -> None:
        faiss = faiss_library()

        some = min(NEIGHBOURS + 1, len(ids))
        scores, places = faiss.knn(
            self.vectors, np.ascontiguousarray(vectors), some, metric=faiss.METRIC_INNER_PRODUCT
        )
        found = ids[places]
        scores[found == self.own[:, None]] = -2.0
        all_ids = np.concatenate((self.ids, found), axis=1)
        all_scores = np.concatenate((self.scores, scores), axis=1)
        order = np.argsort(-all_scores, axis=1, kind="stable")[:, :NEIGHBOURS]
        self.ids = np.take_along_axis(all_ids, order, axis=1)
        self.scores = np.take_along_axis(all_scores, order, axis=1)


def _choose_probes(index: ListIndex, nearest: _Nearest) -> None:
    """Set the fewest probes that reach the target, to within a tenth, and those to search with."""
    too_few, enough = 0, 1
    recall = _measure(index, nearest, enough)
    while recall < TARGET and enough < index.lists:
        too_few, enough = enough, min(2 * enough, index.lists)
        recall = _measure(index, nearest, enough)
    while enough - too_few > max(1, enough // 10):
        middle = (too_few + enough) // 2
        measured = _measure(index, nearest, middle)
        if measured < TARGET:
            too_few = middle
        else:
            enough, recall = middle, measured
    least = min(index.lists, math.ceil(index.lists * LEAST_LOOKED_AT / max(len(index), 1)))
    index.fewest, index.probes = enough, max(enough, least)
    if index.probes > enough:
        recall = _measure(index, nearest, index.probes)
    index.recall = Recall(recall, len(nearest.own), NEIGHBOURS)


def _measure(index: ListIndex, nearest: _Nearest, probes: int) -> float:
    """The share of the true nearest, or of others as near, that searches find."""
    faiss = faiss_library()

    parameters = faiss.SearchParametersIVF(nprobe=probes)
    scores, ids = index.library.search(nearest.vectors, NEIGHBOURS + 1, params=parameters)
    true = nearest.ids >= 0
    last = np.where(true, nearest.scores, np.inf).min(axis=1)
    is_other = (ids >= 0) & (ids != nearest.own[:, None])
    rounding = _SIXTEEN_BITS / index.dimensions**0.5
    is_near = is_other & (scores >= last[:, None] - rounding)
    wanted = true.sum(axis=1)
    found = np.minimum(is_near.sum(axis=1), wanted)
    return float(found.sum() / max(wanted.sum(), 1))
