"""Searching: from a query to ranked hits with the parts of their scores.

The stages, each of which a query may leave out but the first: candidates by meaning, by words or by
both; order by a reranker; the weight of age; hits unlike each other; what stands around each hit.
Refuses to know where notes and vectors are: a `Reader` finds them.

A hit's `parts` has what its score is made of, as far as it was asked for:

| part | what it is |
|---|---|
| `cosine`, `bm25` | likeness in meaning, match of words |
| `dense_rank`, `lexical_rank` | its place in both rankings, from 1 |
| `fused` | what both come to (`fusion.py`), from 0 to 1 |
| `rerank` | what the reranker made of it |
| `recency` | the weight of its age, 1 when new |
| `relevance`, `likeness` | with diversity: its score before, and its likeness to hits before it |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llmos.memory.conditions import parse, refuse_unknown
from llmos.memory.filters import Filter
from llmos.memory.fusion import fuse
from llmos.memory.query import Query
from llmos.memory.rank import diverse, faded, query_terms, recency
from llmos.memory.reader import Reader
from llmos.memory.surroundings import passages
from llmos.syscalls.results import Hits

if TYPE_CHECKING:
    from llmos.memory.notes import Matrix, NoteRow

# How far down a ranking is looked when it is not the last word: a note that only one of two
# rankings likes can still win, and so can one that is new, or unlike the others.
DEPTH_FACTOR = 4
DEPTH_MIN = 50
# So many matches of words are ranked, which takes about 0.1 s; more only where no rarer word helps.
MOST_MATCHES = 50_000
# Others may delete a note between the ranking and the reading; then there is another to be found.
_TRIES = 3


class _Candidate(NamedTuple):
    note: int
    score: float
    parts: dict[str, float]

    def rated(self, score: float, **parts: float) -> _Candidate:
        """The same with another score, and what that is made of."""
        return _Candidate(self.note, score, {**self.parts, **parts})


def search(reader: Reader, query: Query, unit_vector: Matrix | None, now: float) -> Hits:
    """The k best live notes of some namespaces that pass the query's filters.

    k of them if that many pass; by words alone, if that many match. What changes the order after
    the first ranking looks at its best `max(4 k, 50)` candidates.
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
    is_final = query.mode != "hybrid" and not _is_reordered(query)
    depth = query.k if is_final else max(DEPTH_FACTOR * query.k, DEPTH_MIN)
    found: list[_Candidate] = []
    rows: dict[int, NoteRow] = {}
    for _ in range(_TRIES):
        found = _candidates(reader, query, unit_vector, chosen, depth)
        if not _is_reordered(query):
            found = found[: query.k]
        rows = reader.notes([one.note for one in found])
        if len(rows) == len(found):
            break
    _refuse_unknown_fields(reader, query, is_empty=not found)
    found = [one for one in found if one.note in rows]
    if query.reranker is not None:
        found = _reranked(query, found, rows)
    if query.recency_s is not None:
        found = _aged(found, rows, query.recency_s, chosen.valid_at)
    if query.diversity > 0:
        found = _unlike(reader, found, query)
    hits = [_hit(reader, one, rows[one.note], query, chosen) for one in found[: query.k]]
    return Hits.model_validate({"hits": hits})  # all at once: half as long as one by one


def _is_reordered(query: Query) -> bool:
    return query.reranker is not None or query.recency_s is not None or query.diversity > 0


def _candidates(
    reader: Reader, query: Query, unit: Matrix | None, chosen: Filter, depth: int
) -> list[_Candidate]:
    cosine: dict[int, float] = {}
    bm25: dict[int, float] = {}
    if query.mode != "lexical" and unit is not None:
        cosine = dict(reader.nearest(unit, chosen, depth))
    if query.mode != "dense":
        bm25 = dict(_matching(reader, query, chosen, depth))
    match query.mode:
        case "dense":
            return [_Candidate(note, score, {"cosine": score}) for note, score in cosine.items()]
        case "lexical":
            return [_Candidate(note, score, {"bm25": score}) for note, score in bm25.items()]
        case "hybrid":
            return _fused(cosine, bm25)


def _matching(reader: Reader, query: Query, chosen: Filter, depth: int) -> list[tuple[int, float]]:
    """The best notes by words.

    In a large store words that very many notes have are left out where rarer ones find enough: they
    cost most of the time, and decide only between notes that the rarer words rank about alike.
    """
    terms = query_terms(query.text)
    if not terms:
        return []
    rare = reader.rarest(terms, MOST_MATCHES)
    found = reader.matching(rare, chosen, depth)
    if query.mode == "lexical" and len(found) < query.k and len(rare) < len(terms):
        found = reader.matching(terms, chosen, depth)
    return found


def _fused(cosine: dict[int, float], bm25: dict[int, float]) -> list[_Candidate]:
    found: list[_Candidate] = []
    for note, score, ranks in fuse(cosine, bm25):
        parts = {"fused": score, **{f"{name}_rank": float(rank) for name, rank in ranks.items()}}
        if note in cosine:
            parts["cosine"] = cosine[note]
        if note in bm25:
            parts["bm25"] = bm25[note]
        found.append(_Candidate(note, score, parts))
    return found


def _refuse_unknown_fields(reader: Reader, query: Query, *, is_empty: bool) -> None:
    """Refuse a condition on a field that is nowhere: it shows when nothing is found.

    `$ne` is the exception, which holds for all notes then.
    """
    conditions = parse(query.where)
    if is_empty or any(one.operator == "$ne" for one in conditions):
        refuse_unknown(reader.sql, conditions, query.namespaces)


def _reranked(query: Query, found: list[_Candidate], rows: dict[int, NoteRow]) -> list[_Candidate]:
    assert query.reranker is not None
    scores = query.reranker(query.text, [rows[one.note].text for one in found]) if found else []
    return _in_order(
        [one.rated(score, rerank=score) for one, score in zip(found, scores, strict=True)]
    )


def _aged(
    found: list[_Candidate], rows: dict[int, NoteRow], half_life_s: float, at: float
) -> list[_Candidate]:
    aged: list[_Candidate] = []
    for one in found:
        row = rows[one.note]
        age_s = at - (row.created_at if row.valid_from is None else row.valid_from)
        aged.append(
            one.rated(faded(one.score, age_s, half_life_s), recency=recency(age_s, half_life_s))
        )
    return _in_order(aged)


def _unlike(reader: Reader, found: list[_Candidate], query: Query) -> list[_Candidate]:
    vectors = reader.vectors_there([one.note for one in found])
    found = [one for one in found if one.note in vectors]
    if not found:
        return []
    matrix = np.stack([vectors[one.note] for one in found])
    chosen = diverse([one.score for one in found], matrix, query.k, diversity=query.diversity)
    return [
        found[one.place].rated(one.score, relevance=found[one.place].score, likeness=one.likeness)
        for one in chosen
    ]


def _in_order(found: list[_Candidate]) -> list[_Candidate]:
    """Best first; of equals the one that was before."""
    return sorted(found, key=lambda one: -one.score)


def _hit(
    reader: Reader, found: _Candidate, row: NoteRow, query: Query, chosen: Filter
) -> dict[str, Any]:
    """The fields of a `Hit`."""
    return {
        "id": row.id,
        "text": row.text,
        "namespace": row.namespace,
        "score": found.score,
        "parts": found.parts,
        "metadata": row.metadata,
        "source": row.source,
        "position": row.position,
        "created_at": row.created_at,
        "kind": row.kind,
        "importance": row.importance,
        "valid_from": row.valid_from,
        "valid_to": row.valid_to,
        "superseded_by": row.superseded_by,
        "parent": row.parent,
        "context": passages(reader.sql, row, chosen, query),
    }
