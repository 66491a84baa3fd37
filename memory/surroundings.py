"""What stands around a note: those before and after it in its source, and what it is a part of.

Only what the search might have found but for its conditions on kind and metadata: of the note's own
namespace, live, and valid at the time that was asked for.
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

from llmos.syscalls.results import Passage

if TYPE_CHECKING:
    from llmos.memory.filters import Filter
    from llmos.memory.notes import NoteRow


def passages(
    sql: sqlite3.Connection,
    row: NoteRow,
    chosen: Filter,
    *,
    neighbours: int,
    with_parent: bool,
) -> tuple[Passage, ...]:
    """The parent, where there is one, and as many neighbours on each side, in order.

    A note without source or position has no neighbours.
    """
    if not neighbours and not with_parent:
        return ()
    seen = replace(chosen, namespaces=[row.namespace], where={}, kinds=None)
    found: list[Passage] = []
    if with_parent and row.parent is not None:
        found += _parent(sql, row.parent, seen)
    if neighbours and row.source is not None and row.position is not None:
        found += reversed(_beside(sql, row, seen, neighbours, -1))
        found += _beside(sql, row, seen, neighbours, 1)
    return tuple(found)


def _parent(sql: sqlite3.Connection, parent: int, seen: Filter) -> list[Passage]:
    condition, parameters = seen.sql()
    rows = sql.execute(
        f"SELECT id, text, position FROM notes WHERE id = ? AND {condition}", (parent, *parameters)
    )
    return [Passage(id=note, place=0, text=text, position=at) for note, text, at in rows]


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
        Passage(id=note, place=way * place, text=text, position=at)
        for place, (note, text, at) in enumerate(rows, start=1)
    ]
