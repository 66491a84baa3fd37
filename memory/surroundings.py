"""What stands around a note: notes beside it in its source, its whole, facts that touch its own.

Only what the search might have found but for its conditions on kind and metadata: live, valid at
the time that was asked for, and of the note's own namespace, or for facts of those searched.
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

from llmos.memory.knowledge import related
from llmos.syscalls.results import Passage

if TYPE_CHECKING:
    from llmos.memory.filters import Filter
    from llmos.memory.notes import NoteRow
    from llmos.memory.query import Query
    from llmos.syscalls.results import RelatedFact

_RELATED = 10  # related facts of a hit, at most


def passages(
    sql: sqlite3.Connection, row: NoteRow, chosen: Filter, query: Query
) -> tuple[Passage, ...]:
    """What a query wants around a note that a filter chose.

    A note without a source or a position has no neighbours, one without a fact no related facts.
    """
    if not (query.neighbours or query.with_parent or query.hops):
        return ()
    near = replace(chosen, where={}, kinds=None)
    own = replace(near, namespaces=[row.namespace])
    found: list[Passage] = []
    if query.with_parent and row.parent is not None:
        found += _parent(sql, row.parent, own)
    if query.neighbours and row.source is not None and row.position is not None:
        found += reversed(_beside(sql, row, own, query.neighbours, -1))
        found += _beside(sql, row, own, query.neighbours, 1)
    if query.hops and row.kind == "semantic":
        found += _related(sql, row.id, near, query.hops)
    return tuple(found)


def _related(sql: sqlite3.Connection, note: int, near: Filter, hops: int) -> list[Passage]:
    entities = sql.execute("SELECT subject, object FROM edges WHERE note = ?", (note,)).fetchone()
    found: dict[int, RelatedFact] = {}
    for entity in dict.fromkeys(entities or ()):
        for fact in related(sql, entity, near, hops=hops, limit=_RELATED + 1).facts:
            before = found.get(fact.note)
            if fact.note != note and (before is None or fact.hops < before.hops):
                found[fact.note] = fact
    nearest = sorted(found.values(), key=lambda fact: (fact.hops, fact.note))[:_RELATED]
    return [
        Passage(id=fact.note, how="related", place=fact.hops, text=fact.text) for fact in nearest
    ]


def _parent(sql: sqlite3.Connection, parent: int, seen: Filter) -> list[Passage]:
    condition, parameters = seen.sql()
    rows = sql.execute(
        f"SELECT id, text, position FROM notes WHERE id = ? AND {condition}", (parent, *parameters)
    )
    return [
        Passage(id=note, how="parent", place=0, text=text, position=at) for note, text, at in rows
    ]


def _beside(
    sql: sqlite3.Connection, row: NoteRow, seen: Filter, count: int, way: int
) -> list[Passage]:
    """The nearest first. Positions may have gaps, as line numbers do, and be shared."""
    condition, parameters = replace(seen, source=row.source).sql()
    sign, order = ("<", "DESC") if way < 0 else (">", "ASC")
    rows = sql.execute(
        f"SELECT id, text, position FROM notes WHERE {condition} AND position IS NOT NULL"
        f" AND (position, id) {sign} (?, ?) ORDER BY position {order}, id {order} LIMIT ?",
        (*parameters, row.position, row.id, count),
    )
    return [
        Passage(id=note, how="beside", place=way * place, text=text, position=at)
        for place, (note, text, at) in enumerate(rows, start=1)
    ]
