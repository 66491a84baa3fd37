"""Which texts a device that reads texts computes next: passes of like lengths, urgent ones first.

A request of a few texts is somebody who waits for an answer; one of many is a load. Few go before
many, each in passes of their own, and take turns with them, so that neither waits for more than one
pass of the other. Loads of several agents are mixed and sorted by length. What is for idle time
comes when nothing else waits, and after each 15 passes of others, so that it ends one day. Not
thread-safe.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")
A = TypeVar("A")

FEW_TEXTS = 8
PASSES_PER_IDLE = 15
# A load is sorted by length within so many texts: enough for little padding, and a load that comes
# later is mixed in soon.
POOL_TEXTS = 256
_CHARS_PER_TOKEN = 4  # of English; it decides only how many texts go into one pass


@dataclass(slots=True, eq=False)
class Request(Generic[T, A]):
    """Texts that one caller waits for. `answers` has gaps until all are computed.

    `sizes` are about the tokens that are computed of each text.
    """

    texts: Sequence[T]
    sizes: Sequence[int]
    answers: list[A | None]
    done: asyncio.Future[list[A]]
    is_idle: bool = False
    missing: deque[int] = field(default_factory=deque[int])  # places not yet given out

    @property
    def is_gone(self) -> bool:
        """Whether nobody waits any more."""
        return self.done.done()


R = TypeVar("R", bound=Request[Any, Any])


class Item(NamedTuple, Generic[R]):
    """One text of a request."""

    request: R
    place: int
    tokens: int  # about, to batch by


def about_tokens(text: str) -> int:
    """About the tokens of a text, counted in no time."""
    return len(text) // _CHARS_PER_TOKEN + 2


class TextQueue(Generic[R]):
    """`pass_tokens`: about the tokens of one forward pass."""

    def __init__(self, *, pass_tokens: int) -> None:
        self._pass_tokens = pass_tokens
        self._few: deque[R] = deque()
        self._many: deque[R] = deque()
        self._idle: deque[R] = deque()
        self._pool: deque[list[Item[R]]] = deque()  # passes of loads, made up already
        self._idle_pool: deque[list[Item[R]]] = deque()
        self._was_few = False
        self._busy_passes = 0  # since the last for idle time

    def push(self, request: R) -> None:
        """Queue a request's missing texts."""
        if request.is_idle:
            self._idle.append(request)
        elif len(request.missing) <= FEW_TEXTS:
            self._few.append(request)
        else:
            self._many.append(request)

    def waiting(self) -> list[R]:
        """The requests that still have texts to be computed."""
        queued = (*self._few, *self._many, *self._idle)
        pooled = (
            item.request for part in (self._pool, self._idle_pool) for one in part for item in one
        )
        return [one for one in dict.fromkeys((*queued, *pooled)) if not one.is_gone]

    def next_pass(self) -> list[Item[R]]:
        """The texts of the next pass; none when nothing waits."""
        self._fill(self._idle_pool, self._idle)
        is_idle_due = self._busy_passes >= PASSES_PER_IDLE and self._idle_pool
        if not is_idle_due and (items := self._next_busy()):
            self._busy_passes += 1
            return items
        self._busy_passes = 0
        return self._idle_pool.popleft() if self._idle_pool else []

    def _next_busy(self) -> list[Item[R]]:
        self._fill(self._pool, self._many)
        if self._few and not (self._was_few and self._pool):
            self._was_few = True
            if items := self._take_few():
                return items
        self._was_few = False
        return self._pool.popleft() if self._pool else []

    def _take_few(self) -> list[Item[R]]:
        """Small requests in the order in which they came, up to one pass."""
        items: list[Item[R]] = []
        total = 0
        while self._few:
            request = self._few[0]
            new = [] if request.is_gone else [self._item(request, p) for p in request.missing]
            size = sum(item.tokens for item in new)
            if items and total + size > self._pass_tokens:
                break
            self._few.popleft()
            request.missing.clear()
            items += new
            total += size
        return items

    def _fill(self, pool: deque[list[Item[R]]], requests: deque[R]) -> None:
        """Make up passes of texts of like length, taken from the requests in turn."""
        while pool and all(item.request.is_gone for item in pool[0]):
            pool.popleft()
        if pool:
            return
        items: list[Item[R]] = []
        while requests and len(items) < POOL_TEXTS:
            request = requests.popleft()
            if request.is_gone:
                continue
            items.append(self._item(request, request.missing.popleft()))
            if request.missing:
                requests.append(request)
        batch: list[Item[R]] = []
        for item in sorted(items, key=lambda item: item.tokens):
            # All are padded to the longest, which is the last.
            if batch and (len(batch) + 1) * item.tokens > self._pass_tokens:
                pool.append(batch)
                batch = []
            batch.append(item)
        if batch:
            pool.append(batch)

    def _item(self, request: R, place: int) -> Item[R]:
        return Item(request, place, request.sizes[place])
