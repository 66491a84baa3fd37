"""How a note enters the store: what is there already, what it supersedes, what is new.

Three ways for a note to be there already, from the certain to the likely: equal text, source and
metadata; the same fact, so at the same time; and, where the caller wants it, nearly the same text
by its embedding (`duplicates.py` says when that is believed). A note that is there is not stored
again: it is made to last as long, and to be as important, as the new one would.

Functions run inside their caller's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmos.memory import notes as rows
from llmos.memory.duplicates import SEMANTIC_COSINE, says_the_same
from llmos.memory.filters import Filter
from llmos.memory.fresh import FRESH_CHARACTERS, reached, settle
from llmos.memory.knowledge import find_told, tell
from llmos.memory.notes import New, Row
from llmos.syscalls.calls import Note
from llmos.syscalls.errors import SyscallError

if TYPE_CHECKING:
    from llmos.memory.fresh import Digests
    from llmos.memory.notes import Matrix
    from llmos.memory.reader import Reader

_NEAREST = 4  # how many of the nearest notes are looked at; the first that says the same is taken


class Entered(NamedTuple):
    """What became of a note: its id, whether it is new, and what it superseded."""

    note: int
    is_new: bool
    superseded: tuple[int, ...] = ()


class Near(NamedTuple):
    """Who says nearly the same: a note of the store, or an earlier one of the same call."""

    note: int | None = None
    place: int | None = None


def nearly_there(
    reader: Reader,
    namespace: str,
    notes: Sequence[Note],
    units: Matrix,
    *,
    merge_above: float | None = None,
) -> dict[int, Near]:
    """Which of some notes say nearly what is known, by their place. `units` has their vectors.

    `merge_above` is the cosine from which this is considered: None is that of semantic notes, and
    never for others. A note with a fact is not compared by its text.
    """
    found: dict[int, Near] = {}
    for place, note in enumerate(notes):
        least = merge_above
        if least is None and note.kind == "semantic":
            least = SEMANTIC_COSINE
        if least is None or note.fact is not None:
            continue
        near = _known(reader, namespace, note, units[place : place + 1], least)
        if near is None:
            near = _told_before(notes, units, place, least, found)
        if near is not None:
            found[place] = near
    return found


def _known(reader: Reader, namespace: str, note: Note, unit: Matrix, least: float) -> Near | None:
    chosen = Filter([namespace], reader.now, kinds=[note.kind])
    nearest = [one for one, cosine in reader.nearest(unit, chosen, _NEAREST) if cosine >= least]
    texts = reader.notes(nearest)
    for one in nearest:
        if one in texts and says_the_same(note.text, texts[one].text):
            return Near(note=one)
    return None


def _told_before(
    notes: Sequence[Note], units: Matrix, place: int, least: float, found: dict[int, Near]
) -> Near | None:
    note = notes[place]
    likeness = units[:place] @ units[place]
    for earlier in (likeness >= least).nonzero()[0].tolist():
        other = notes[earlier]
        if (
            earlier not in found
            and other.fact is None
            and other.kind == note.kind
            and says_the_same(note.text, other.text)
        ):
            return Near(place=earlier)
    return None


class _Desk:
    """Where the notes of one call are entered, knowing how far the indexes have come."""

    def __init__(
        self,
        sql: sqlite3.Connection,
        namespace: str,
        now: float,
        *,
        digests: Digests,
        owner: str | None,
    ) -> None:
        self.sql = sql
        self.namespace = namespace
        self.now = now
        self.reached = reached(sql)
        self._digests = digests
        self._owner = owner

    def find(self, digests: Sequence[bytes]) -> dict[bytes, int]:
        """The current notes that have some digests."""
        return self._digests.find(self.sql, digests, self.reached)

    def insert(self, new: Sequence[New]) -> None:
        """Insert notes, whose ids follow the newest."""
        if not new:
            return
        rows.insert(self.sql, self.namespace, new, self.now, owner=self._owner)
        for one in new:
            self._digests.add(one.id, one.row.digest)
        self.reached = settle(
            self.sql,
            self.reached._replace(newest=new[-1].id),
            has_long=any(len(one.row.note.text) > FRESH_CHARACTERS for one in new),
        )


def enter(
    sql: sqlite3.Connection,
    namespace: str,
    prepared: Sequence[Row],
    vectors: Sequence[bytes],
    now: float,
    *,
    digests: Digests,
    owner: str | None = None,
    near: Mapping[int, Near] | None = None,
) -> list[Entered]:
    """Store notes in their order, except those that are there. `near` has, by place, what says
    nearly the same, if it is still so.

    Notes without a fact or a parent wait to be inserted together, until one comes that may look
    for them. Raises: SyscallError("invalid") when a parent is no note of the namespace.
    """
    desk = _Desk(sql, namespace, now, digests=digests, owner=owner)
    known = desk.find([row.digest for row in prepared])
    waiting: list[New] = []
    entered: list[Entered] = []
    next_id = desk.reached.newest + 1
    for place, row in enumerate(prepared):
        new = New(next_id, row, vectors[place])
        close = (near or {}).get(place)
        is_plain = close is None and row.note.fact is None and row.note.parent is None
        if is_plain and row.digest not in known:
            known[row.digest] = next_id
            waiting.append(new)
            entered.append(Entered(next_id, is_new=True))
            next_id += 1
            continue
        desk.insert(waiting)
        waiting = []
        twin = None
        if close is not None:
            twin = close.note if close.place is None else entered[close.place].note
        one = _enter_one(desk, new, near=twin)
        if one.is_new:
            next_id += 1
        entered.append(one)
    desk.insert(waiting)
    return entered


def _enter_one(desk: _Desk, new: New, *, near: int | None) -> Entered:
    sql, namespace, now = desk.sql, desk.namespace, desk.now
    note = new.row.note
    since = now if note.valid_from is None else note.valid_from
    known = desk.find([new.row.digest]).get(new.row.digest)
    if known is None and note.fact is not None:
        known = find_told(sql, namespace, note.fact, since, now)
    if known is None and near is not None:
        known = _still_there(sql, near, now)
    if known is not None:
        _strengthen(sql, known, note)
        return Entered(known, is_new=False)
    if note.parent is not None:
        _check_parent(sql, namespace, note.parent)
    desk.insert([new])
    if note.fact is None:
        return Entered(new.id, is_new=True)
    return Entered(new.id, True, tuple(tell(sql, new.id, namespace, note.fact, since)))


def _still_there(sql: sqlite3.Connection, note: int, now: float) -> int | None:
    found = sql.execute(
        "SELECT id FROM notes WHERE id = ? AND (expires_at IS NULL OR expires_at > ?)"
        " AND superseded_by IS NULL",
        (note, now),
    ).fetchone()
    return None if found is None else found[0]


def _strengthen(sql: sqlite3.Connection, known: int, note: Note) -> None:
    """Make a note last as long and count as much as another that says the same."""
    expires_at, importance = sql.execute(
        "SELECT expires_at, importance FROM notes WHERE id = ?", (known,)
    ).fetchone()
    if expires_at is not None and (note.expires_at is None or note.expires_at > expires_at):
        sql.execute("UPDATE notes SET expires_at = ? WHERE id = ?", (note.expires_at, known))
    if note.importance > importance:
        sql.execute("UPDATE notes SET importance = ? WHERE id = ?", (note.importance, known))


def _check_parent(sql: sqlite3.Connection, namespace: str, parent: int) -> None:
    found = sql.execute(
        "SELECT 1 FROM notes WHERE id = ? AND namespace = ?", (parent, namespace)
    ).fetchone()
    if found is None:
        raise SyscallError(
            "invalid",
            f"parent: there is no note {parent} in the namespace {namespace!r}; remember the whole "
            "before its parts",
            field="parent",
        )
