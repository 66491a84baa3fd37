"""A store in use against a plain model of it: what is told, superseded, expired and forgotten.

Filters are remembered by the store and caught up with changes; whatever came before, a search finds
exactly what passes now.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from llmos.memory.query import Query
from llmos.memory.store import Store
from llmos.syscalls.calls import Note
from llmos.syscalls.results import Fact

SPACES = ("a", "b")
SPACE = st.sampled_from(SPACES)
SIZE = st.integers(0, 3)
CITIES = ("Oslo", "Rome", "Bonn")


@dataclass
class Kept:
    """A note as the model knows it."""

    space: str
    kind: str
    size: int
    expires_at: float | None = None
    since: float | None = None
    city: str | None = None
    ends_at: float | None = None

    def is_found(self, now: float, at: float, *, with_history: bool) -> bool:
        if self.expires_at is not None and self.expires_at <= now:
            return False
        if with_history:
            return True
        is_begun = self.since is None or self.since <= at
        return is_begun and (self.ends_at is None or self.ends_at > at)


class StoreInUse(RuleBasedStateMachine):
    """Every rule does one thing to the store and to the model; `search` compares them."""

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.now = 1000.0
        self.kept: dict[int, Kept] = {}
        self.count = 0
        self.store = Store(Path(self.folder.name), dimensions=2, clock=lambda: self.now)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()

    def put(self, note: Note, space: str) -> int:
        angle = self.count * 0.01
        self.count += 1
        told = self.store.remember(space, [note], [[math.cos(angle), math.sin(angle)]])
        self.purge()  # a write deletes what has expired
        return told.ids[0]

    def purge(self) -> None:
        gone = {
            note
            for note, kept in self.kept.items()
            if kept.expires_at is not None and kept.expires_at <= self.now
        }
        for note in gone:
            del self.kept[note]
        self.settle()

    def settle(self) -> None:
        """The history of facts, from scratch: each ends where the next of its namespace begins."""
        for space in SPACES:
            told = sorted(
                (kept.since, note)
                for note, kept in self.kept.items()
                if kept.space == space and kept.city is not None and kept.since is not None
            )
            for place, (_, note) in enumerate(told, start=1):
                self.kept[note].ends_at = told[place][0] if place < len(told) else None

    @rule(space=SPACE, size=SIZE, kind=st.sampled_from(["episodic", "procedural"]), lasts=SIZE)
    def remember(self, space: str, size: int, kind: str, lasts: int) -> None:
        expires_at = self.now + 10 * lasts if lasts else None
        note = self.put(
            Note(
                text=f"note {self.count}",
                kind="episodic" if kind == "episodic" else "procedural",
                metadata={"size": size},
                expires_at=expires_at,
            ),
            space,
        )
        self.kept[note] = Kept(space, kind, size, expires_at=expires_at)

    @rule(space=SPACE, city=st.sampled_from(CITIES), ago=st.integers(-2, 8), size=SIZE)
    def tell(self, space: str, city: str, ago: int, size: int) -> None:
        since = self.now - 10.0 * ago
        fact = Fact(subject="Ann", relation="lives in", object=city)
        self.purge()
        told = self.put(
            Note(text=f"told {self.count}", metadata={"size": size}, fact=fact, valid_from=since),
            space,
        )
        if told not in self.kept:
            self.kept[told] = Kept(space, "semantic", size, since=since, city=city)
        else:  # it was so already at that time
            assert self.kept[told].city == city
        self.settle()

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        note = data.draw(st.sampled_from(sorted(self.kept)))
        kept = self.kept.pop(note)
        is_live = kept.expires_at is None or kept.expires_at > self.now
        assert self.store.forget(kept.space, ids=[note]).count == int(is_live)
        self.settle()

    @rule(tens=st.integers(1, 3))
    def wait(self, tens: int) -> None:
        self.now += 10.0 * tens

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store(Path(self.folder.name), dimensions=2, clock=lambda: self.now)
        self.purge()

    @rule(
        spaces=st.lists(SPACE, min_size=1, max_size=2, unique=True),
        kinds=st.none() | st.just(("semantic",)) | st.just(("episodic", "procedural")),
        least=st.none() | SIZE,
        ago=st.none() | st.integers(-3, 8),
        with_history=st.booleans(),
    )
    def search(
        self,
        spaces: list[str],
        kinds: Sequence[str] | None,
        least: int | None,
        ago: int | None,
        with_history: bool,
    ) -> None:
        at = self.now if ago is None else self.now - 10.0 * ago
        wanted = {
            note
            for note, kept in self.kept.items()
            if kept.space in spaces
            and (kinds is None or kept.kind in kinds)
            and (least is None or kept.size >= least)
            and kept.is_found(self.now, at, with_history=with_history)
        }
        query = Query(
            text="x",
            vector=[1.0, 0.0],
            mode="dense",
            namespaces=spaces,
            k=1000,
            kinds=kinds,
            where={} if least is None else {"size": {"$gte": least}},
            at=None if ago is None else at,
            with_history=with_history,
        )
        assert {hit.id for hit in self.store.retrieve(query).hits} == wanted


StoreInUse.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestStoreInUse = StoreInUse.TestCase
