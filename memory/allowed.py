"""Which notes a search may return, as bits by id: remembered between searches with the same filter.

What a note's namespace, kind, source, owner and metadata are never changes, and ids only grow. So
the set of a filter is remembered and brought up to date by looking at newer ids alone; deleted
notes are taken out as they are reported. What depends on the time (expiry, validity) changes
rarely: the few notes that are hidden at a time are kept apart and taken out of a copy.

Thread-safe. A set that was given out may gain and lose notes that come and go meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llmos.memory.changes import hidden, ids_between
from llmos.memory.filters import Filter
from llmos.memory.notes import select_ids

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmos.memory.changes import Version
    from llmos.memory.notes import Ids

    Bits = NDArray[np.uint8]

MOST_SETS = 64  # of 125 KB each for a million notes
MOST_LISTED = 4096  # the ids of a set with so many are kept beside its bits


@dataclass(slots=True)
class Allowed:
    """A set of note ids. Bit `id & 7` of byte `id >> 3` is set for each; `ids` lists a few."""

    bits: Bits
    count: int
    ids: Ids | None = None

    @classmethod
    def of(cls, ids: Ids) -> Allowed:
        """The set of some ids, each given once."""
        room = (int(ids.max()) >> 3) + 1 if len(ids) else 0
        made = cls(np.zeros(room, dtype=np.uint8), 0, ids[:0])
        made.add(ids)
        return made

    def add(self, ids: Ids) -> None:
        """Take in ids that are not there, in a new array of bits when they need more room."""
        if not len(ids):
            return
        room = (int(ids.max()) >> 3) + 1
        if room > len(self.bits):
            self.bits = np.concatenate(
                (self.bits, np.zeros(room + room // 8 - len(self.bits), dtype=np.uint8))
            )
        np.bitwise_or.at(self.bits, ids >> 3, _bit(ids))
        self.count += len(ids)
        if self.ids is not None:
            self.ids = np.concatenate((self.ids, ids)) if self.count <= MOST_LISTED else None

    def remove(self, ids: Ids) -> None:
        """Take out those of the ids that are there."""
        here = ids[(ids >> 3) < len(self.bits)]
        here = here[(self.bits[here >> 3] & _bit(here)) != 0]
        if not len(here):
            return
        np.bitwise_and.at(self.bits, here >> 3, ~_bit(here))
        self.count -= len(here)
        if self.ids is not None:
            self.ids = np.setdiff1d(self.ids, here, assume_unique=True)

    def has(self, ids: Ids) -> NDArray[np.bool_]:
        """Which of some ids are there `(len(ids),)`."""
        here = (ids >> 3) < len(self.bits)
        here[here] = (self.bits[ids[here] >> 3] & _bit(ids[here])) != 0
        return here

    def without(self, ids: Ids) -> Allowed:
        """A copy without some ids."""
        copy = replace(self, bits=self.bits.copy())
        copy.remove(ids)
        return copy


def _bit(ids: Ids) -> Bits:
    return np.left_shift(1, ids & 7).astype(np.uint8)


class _Remembered(NamedTuple):
    allowed: Allowed
    last_id: int


_NO_IDS = np.empty(0, dtype=np.int64)
_NOTHING = _Remembered(Allowed.of(_NO_IDS), 0)


class _Hidden(NamedTuple):
    """What is hidden in a state of the store, at times from `since` until before `until`."""

    version: Version
    since: float
    until: float
    ids: Ids


class AllowedSets:
    """The sets of the filters that were used last."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._sets: OrderedDict[str, _Remembered] = OrderedDict()
        self._hidden: dict[bool, _Hidden] = {}
        self._looking = 0  # how many threads look into the database now
        self._removed: list[Ids] = []  # what was deleted since the first of them began

    def find(self, sql: sqlite3.Connection, chosen: Filter, version: Version) -> Allowed:
        """The notes that pass a filter. `version` is the state that `sql` sees, or an older one."""
        if chosen.ids is not None:
            return Allowed.of(select_ids(sql, chosen))
        lasting = self._lasting(sql, chosen, version)
        hidden = self._hidden_at(sql, chosen, version)
        return lasting.without(hidden) if len(hidden) else lasting

    def remove(self, ids: Ids) -> None:
        """Take deleted notes out of every set."""
        with self._lock:
            for one in self._sets.values():
                one.allowed.remove(ids)
            if self._looking:
                self._removed.append(ids)

    def _lasting(self, sql: sqlite3.Connection, chosen: Filter, version: Version) -> Allowed:
        key = chosen.lasting_key()
        while True:
            with self._lock:
                known = self._sets.get(key, _NOTHING)
                if known is not _NOTHING and known.last_id >= version.last_id:
                    self._sets.move_to_end(key)
                    return known.allowed
                self._looking += 1
                mark = len(self._removed)
            try:
                # Not under the lock: the first look at a large namespace takes a while.
                found = ids_between(sql, chosen, known.last_id, version.last_id)
            finally:
                with self._lock:
                    removed = self._removed[mark:]
                    self._looking -= 1
                    if not self._looking:
                        self._removed.clear()
            with self._lock:
                if self._sets.get(key, _NOTHING) is not known:
                    continue  # another thread was here
                allowed = Allowed.of(_NO_IDS) if known is _NOTHING else known.allowed
                allowed.add(found)
                for ids in removed:
                    allowed.remove(ids)
                self._sets[key] = _Remembered(allowed, version.last_id)
                if len(self._sets) > MOST_SETS:
                    self._sets.popitem(last=False)
                return allowed

    def _hidden_at(self, sql: sqlite3.Connection, chosen: Filter, version: Version) -> Ids:
        if chosen.at is not None and not chosen.with_history:
            return hidden(sql, chosen.now, chosen.at).ids
        known = self._hidden.get(chosen.with_history)
        if known is None or known.version != version or not known.since <= chosen.now < known.until:
            valid_at = None if chosen.with_history else chosen.now
            found = hidden(sql, chosen.now, valid_at)
            known = _Hidden(version, chosen.now, found.until, found.ids)
            self._hidden[chosen.with_history] = known
        return known.ids
