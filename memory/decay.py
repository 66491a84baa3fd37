"""Forgetting by decay: what is unimportant and unused fades, what is used lasts.

A note's strength is its importance, halved for each half-life that it lay unused. Each use makes
the half-life longer by as much again, as repetition does in people. Importance 1 does not fade.

Only what happened decays: episodic notes without a source, and dialogue that left a context.
Documents are as the user left them, facts are superseded instead, and skills are kept until they
are forgotten by request.

Source for the shape: Zhong et al., "MemoryBank: Enhancing Large Language Models with Long-Term
Memory" (AAAI 2024), after Ebbinghaus's curve of forgetting; uses lengthen the half-life there too.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

DAY_S = 86_400.0
_NEVER = 1.0  # the importance that does not fade


class Decay(NamedTuple):
    """How fast notes fade and when they are gone.

    With these, an unused note of middling importance (0.5) lasts 100 days, one of 0.1 lasts 30.
    """

    half_life_s: float = 30 * DAY_S
    floor: float = 0.05


DEFAULT = Decay()


def strength(importance: float, idle_s: float, uses: int, half_life_s: float) -> float:
    """What is left of an importance after `idle_s` seconds since the last of some uses."""
    if importance >= _NEVER:
        return _NEVER
    return importance * 2.0 ** -(max(idle_s, 0.0) / (half_life_s * (1 + uses)))


def lasts_s(importance: float, uses: int, decay: Decay = DEFAULT) -> float:
    """How long a note lasts unused, in seconds; infinite for what does not fade."""
    if importance >= _NEVER:
        return math.inf
    if importance <= decay.floor:
        return 0.0
    return decay.half_life_s * (1 + uses) * math.log2(importance / decay.floor)


def left_behind_ids(sql: sqlite3.Connection, before: float) -> list[int]:
    """The notes in processes' own namespaces to which nothing was added since a time.

    No later process can name such a namespace, so once its process has ended nobody reads them but
    who restores a context that was saved from there.
    """
    own = "namespace >= 'process-' AND namespace < 'process.'"  # "." comes after "-"
    rows = sql.execute(
        f"SELECT id FROM notes WHERE {own} AND namespace NOT IN"
        f" (SELECT namespace FROM notes WHERE {own} AND created_at >= ?)",
        (before,),
    )
    return [note for (note,) in rows]


def faded_ids(
    sql: sqlite3.Connection,
    now: float,
    decay: Decay = DEFAULT,
    *,
    namespaces: Sequence[str] | None = None,
) -> list[int]:
    """The notes that have faded below the floor by `now`, in some namespaces (None: in all).

    A note that another one is a part of lasts as long as its parts.
    """
    within = None if namespaces is None else json.dumps(list(namespaces))
    rows = sql.execute(
        "SELECT notes.id, notes.importance, coalesce(usage.used_at, notes.created_at),"
        " coalesce(usage.uses, 0)"
        " FROM notes LEFT JOIN usage ON usage.note = notes.id"
        " WHERE notes.kind = 'episodic' AND notes.importance < ?"
        " AND (notes.source IS NULL OR notes.source LIKE 'context:%')"
        " AND (? IS NULL OR notes.namespace IN (SELECT value FROM json_each(?)))"
        " AND notes.id NOT IN (SELECT parent FROM notes WHERE parent IS NOT NULL)",
        (_NEVER, within, within),
    )
    return [
        note
        for note, importance, used_at, uses in rows
        if strength(importance, now - used_at, uses, decay.half_life_s) < decay.floor
    ]
