"""Ranking: what a person typed as a full-text query, and the fusion of several rankings.

Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MAX_QUERY_TERMS = 64  # more terms cost time and hardly change a BM25 ranking
_TERM = re.compile(r"\w+")

# The constant of reciprocal rank fusion. Source: G. Cormack, C. Clarke, S. Büttcher, "Reciprocal
# Rank Fusion outperforms Condorcet and individual Rank Learning Methods" (SIGIR 2009), which found
# 60 and a flat optimum around it.
RRF_K = 60


def match_query(text: str) -> str | None:
    """An FTS5 query for any of the text's words; None when it has none.

    Each word is quoted, so that FTS5's operators and punctuation are plain text. Any of them, not
    all: a question has words that its answer lacks, and BM25 ranks by how many match and how rare.
    """
    terms = dict.fromkeys(term.lower() for term in _TERM.findall(text))
    return " OR ".join(f'"{term}"' for term in list(terms)[:MAX_QUERY_TERMS]) or None


class Fused(NamedTuple):
    """An item's place in the fusion; `ranks` counts from 1 in each ranking that has it."""

    id: int
    score: float
    ranks: dict[str, int]


def fuse(rankings: Mapping[str, Sequence[int]]) -> list[Fused]:
    """Reciprocal rank fusion, best first: an item scores the sum of 1 / (RRF_K + rank).

    Ranks need no common scale, which cosine and BM25 do not have. Ties go to the older item.
    """
    ranks: dict[int, dict[str, int]] = {}
    for name, ids in rankings.items():
        for rank, item in enumerate(ids, start=1):
            ranks.setdefault(item, {})[name] = rank
    fused = [
        Fused(item, sum(1.0 / (RRF_K + rank) for rank in places.values()), places)
        for item, places in ranks.items()
    ]
    return sorted(fused, key=lambda entry: (-entry.score, entry.id))
