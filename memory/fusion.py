"""Hybrid search: one order from likeness in meaning and from the match of words.

A note's score is a weighted mean of two parts from 0 to 1: its cosine, between those of the last
and the first of the dense ranking, and its BM25, as a share of the first's of the lexical one. What
a ranking lacks has 0 there. How far to trust words is read off their ranking: where its first hit
stands far above its second, the query holds a name, a number or another rare word, and words
decide; where many match about as well, meaning does.

Scores and not ranks, because ranks hide that first and second are far apart, which is most of what
an exact match has to say. Both weights were chosen on questions that no figure is of
(`benchmarks/hybrid.py`, which also has reciprocal rank fusion beside it).

Source: S. Bruch, S. Gai, A. Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval" (ACM
TOIS 2023, arXiv 2210.11934), which finds a convex combination of normalised scores ahead of
reciprocal rank fusion. Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

# The weight of meaning where one note matches the words alone, and where the second does as well.
# Flat around both: 0.2 to 0.3, and 0.5 to 0.6, change nDCG@10 by less than 0.01.
LEAST_DENSE = 0.25
MOST_DENSE = 0.55


class Fused(NamedTuple):
    """An item's place in the fusion; `ranks` counts from 1 in each ranking that has it."""

    id: int
    score: float
    ranks: dict[str, int]


def fuse(cosine: Mapping[int, float], bm25: Mapping[int, float]) -> list[Fused]:
    """The items of both rankings, best first; each ranking's items are in its own order.

    Scores go from 0 to 1. An empty ranking leaves the other's order as it is. Ties go to the item
    that was ranked better, then to the older one.
    """
    weight = dense_weight(list(bm25.values())) if bm25 else 1.0
    dense, lexical = _between_last_and_first(cosine), _share_of_first(bm25)
    ranks: dict[int, dict[str, int]] = {}
    for name, ranking in (("dense", cosine), ("lexical", bm25)):
        for rank, item in enumerate(ranking, start=1):
            ranks.setdefault(item, {})[name] = rank
    fused = [
        Fused(
            item,
            weight * dense.get(item, 0.0) + (1.0 - weight) * lexical.get(item, 0.0),
            places,
        )
        for item, places in ranks.items()
    ]
    return sorted(fused, key=lambda one: (-one.score, min(one.ranks.values()), one.id))


def dense_weight(bm25: Sequence[float]) -> float:
    """The weight of meaning against words, by how close the second match of words is to the first.

    `bm25` has the scores of the lexical ranking, the best first, at least one.
    """
    first, second = bm25[0], bm25[1] if len(bm25) > 1 else 0.0
    closeness = max(0.0, second / first) if first > 0 else 1.0
    return LEAST_DENSE + (MOST_DENSE - LEAST_DENSE) * closeness**2


def _between_last_and_first(scores: Mapping[int, float]) -> dict[int, float]:
    if not scores:
        return {}
    least, most = min(scores.values()), max(scores.values())
    if most == least:
        return dict.fromkeys(scores, 1.0)
    return {item: (score - least) / (most - least) for item, score in scores.items()}


def _share_of_first(scores: Mapping[int, float]) -> dict[int, float]:
    most = max(scores.values(), default=0.0)
    if most <= 0:
        return dict.fromkeys(scores, 1.0)
    return {item: max(0.0, score / most) for item, score in scores.items()}
