"""Searching: from a query to ranked hits with the parts of their scores.

Refuses to know where notes and vectors are: a `Reader` finds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos.memory.filters import Filter
from llmos.memory.query import Query
from llmos.memory.rank import fuse, match_query
from llmos.memory.reader import Reader
from llmos.syscalls.results import Hit, Hits

if TYPE_CHECKING:
    from llmos.memory.notes import Matrix

Scored = tuple[int, float, dict[str, float]]

# How far down each ranking the fusion looks: a note that only one of them likes can still win.
FUSION_DEPTH_FACTOR = 4
FUSION_DEPTH_MIN = 50


def search(reader: Reader, query: Query, unit_vector: Matrix | None, now: float) -> Hits:
    """The k best live notes of some namespaces that pass the query's filters.

    `dense` ranks by cosine to `unit_vector`, `lexical` by BM25, `hybrid` by reciprocal rank fusion
    of both. A hit's `parts` holds `cosine` and `bm25` where known; in hybrid mode also `dense_rank`
    and `lexical_rank`.
    Raises: SyscallError("invalid") naming the field.
    """
    chosen = Filter(
        query.namespaces,
        now,
        query.where,
        kinds=query.kinds,
        at=query.at,
        with_history=query.with_history,
    )
    match query.mode:
        case "dense":
            nearest = _nearest(reader, unit_vector, chosen, query.k)
            found = [(note, score, {"cosine": score}) for note, score in nearest]
        case "lexical":
            matching = _matching(reader, query.text, chosen, query.k)
            found = [(note, score, {"bm25": score}) for note, score in matching]
        case "hybrid":
            found = _fused(reader, query, unit_vector, chosen)
    return Hits(hits=_hits(reader, found))


def _nearest(
    reader: Reader, unit: Matrix | None, chosen: Filter, k: int
) -> list[tuple[int, float]]:
    return [] if unit is None else reader.nearest(unit, chosen, k)


def _matching(reader: Reader, text: str, chosen: Filter, k: int) -> list[tuple[int, float]]:
    words = match_query(text)
    return [] if words is None else reader.matching(words, chosen, k)


def _fused(reader: Reader, query: Query, unit: Matrix | None, chosen: Filter) -> list[Scored]:
    depth = max(FUSION_DEPTH_FACTOR * query.k, FUSION_DEPTH_MIN)
    cosine = dict(_nearest(reader, unit, chosen, depth))
    bm25 = dict(_matching(reader, query.text, chosen, depth))
    found: list[Scored] = []
    for note, score, ranks in fuse({"dense": list(cosine), "lexical": list(bm25)})[: query.k]:
        parts = {f"{name}_rank": float(rank) for name, rank in ranks.items()}
        if note in cosine:
            parts["cosine"] = cosine[note]
        if note in bm25:
            parts["bm25"] = bm25[note]
        found.append((note, score, parts))
    return found


def _hits(reader: Reader, found: list[Scored]) -> tuple[Hit, ...]:
    rows = reader.notes([note for note, _, _ in found])
    return tuple(
        Hit(
            id=note,
            text=row.text,
            namespace=row.namespace,
            score=score,
            parts=parts,
            metadata=row.metadata,
            source=row.source,
            position=row.position,
            created_at=row.created_at,
        )
        for note, score, parts in found
        if (row := rows.get(note)) is not None
    )
