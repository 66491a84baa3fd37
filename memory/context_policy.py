"""Policies: what leaves a context's window when it is over budget, and in which order.

All work on the same segments with the edits of `paging.py`. System, core and pinned segments and
the newest step stay in every policy; where these alone are too much, the context refuses the call.

A window that is over its room goes down to `low_water` of it, not to its brim. Removing a little
every turn would recompute most of the window every turn; removing much at once keeps the prefix
stable until as much has been said again. `benchmarks/context.py` measures what that costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, get_args

from llmos.memory.paging import Paging
from llmos.memory.segments import Exchange, Segment, SegmentState
from llmos.syscalls.results import ContextPolicy as PolicyName

LOW_WATER = 0.75
SUMMARY_TOKENS = 192


class ContextPolicy(Protocol):
    """What a context asks when its window is over its room.

    `recalls`: what was paged out is recalled for a new question. `summarises`: what leaves is
    marked `summarised`, and a summary takes its place.
    """

    recalls: ClassVar[bool]
    summarises: ClassVar[bool]

    def make_room(self, paging: Paging, room_tokens: int) -> None:
        """Edit a window that is over its room, as far as the policy goes; exact counts after."""
        ...


@dataclass(frozen=True, slots=True)
class _Exits:
    """Old exchanges leave whole, oldest first.

    Only if that is not enough, results of the current one's earlier steps are dropped, so that a
    long tool loop on one question can go on.
    """

    low_water: float = LOW_WATER
    recalls: ClassVar[bool] = False
    summarises: ClassVar[bool] = False
    leaves_as: ClassVar[SegmentState] = "dropped"

    def make_room(self, paging: Paging, room_tokens: int) -> None:
        if paging.used_tokens <= room_tokens:
            return
        why = _why(paging, room_tokens)
        low_tokens = int(room_tokens * self.low_water)
        old, current = paging.exchanges()
        self._before(paging, old, low_tokens, why)
        reason = f"oldest exchange; {why}"
        exits = (paging.take_out(exchange, self.leaves_as, reason) for exchange in old)
        paging.shrink(exits, low_tokens)
        if paging.used_tokens > room_tokens:
            paging.shrink(_drops(paging, _earlier_results(current), why), low_tokens)

    def _before(self, paging: Paging, old: Sequence[Exchange], low_tokens: int, why: str) -> None:
        """What goes before any exchange does: here nothing."""


class Window(_Exits):
    """A sliding window: the oldest exchanges go, and are kept nowhere."""

    __slots__ = ()


class PageOut(_Exits):
    """The oldest exchanges go to the long-term store, and what fits a new question comes back."""

    __slots__ = ()
    recalls: ClassVar[bool] = True
    leaves_as: ClassVar[SegmentState] = "paged_out"


class Summary(_Exits):
    """The oldest exchanges are replaced by a summary of them and of the summary before it."""

    __slots__ = ()
    summarises: ClassVar[bool] = True
    leaves_as: ClassVar[SegmentState] = "summarised"


@dataclass(frozen=True, slots=True)
class DropResults:
    """Old tool results and recalled material are dropped; nothing that was said leaves."""

    low_water: float = LOW_WATER
    recalls: ClassVar[bool] = False
    summarises: ClassVar[bool] = False

    def make_room(self, paging: Paging, room_tokens: int) -> None:
        why = _why(paging, room_tokens)
        low_tokens = int(room_tokens * self.low_water)
        old, current = paging.exchanges()
        paging.shrink(_drops(paging, _segments_of(old), why), low_tokens)
        if paging.used_tokens > room_tokens:
            paging.shrink(_drops(paging, _earlier_results(current), why), low_tokens)


class Default(PageOut):
    """What can be had again goes first, then the oldest exchanges to the store, in one batch.

    Where dropping results and recalled material near the end makes the room, at no more computing
    than it frees, that is all: the long prefix before them stays. Else everything that can be had
    again goes, then exchanges down to low water: the prefix is lost once, and for long.
    """

    __slots__ = ()

    def make_room(self, paging: Paging, room_tokens: int) -> None:
        if paging.used_tokens > room_tokens:
            self._drop_late(paging, room_tokens)
        super().make_room(paging, room_tokens)

    def _before(self, paging: Paging, old: Sequence[Exchange], low_tokens: int, why: str) -> None:
        paging.shrink(_drops(paging, _segments_of(old), why), low_tokens)

    def _drop_late(self, paging: Paging, room_tokens: int) -> None:
        """Drop the latest droppable segments that make the room, if that is cheap."""
        need_tokens = paging.used_tokens - room_tokens
        old, _ = paging.exchanges()
        chosen, freed_tokens = list[Segment](), 0
        best: tuple[float, int] | None = None
        for segment in reversed(_segments_of(old)):
            saving_tokens = paging.saving_tokens(segment)
            if not saving_tokens:
                continue
            recomputed_tokens = paging.behind_tokens(segment.index) - freed_tokens
            freed_tokens += saving_tokens
            chosen.append(segment)
            price = recomputed_tokens / freed_tokens
            if freed_tokens >= need_tokens and price <= 1 and (best is None or price <= best[0]):
                best = price, len(chosen)
        if best is not None:
            why = _why(paging, room_tokens)
            paging.shrink(_drops(paging, chosen[: best[1]], why), 0)


POLICIES: Mapping[PolicyName, ContextPolicy] = {
    "default": Default(),
    "window": Window(),
    "drop_results": DropResults(),
    "page_out": PageOut(),
    "summary": Summary(),
}
assert set(POLICIES) == set(get_args(PolicyName))


def _why(paging: Paging, room_tokens: int) -> str:
    return f"{paging.used_tokens} tokens for a room of {room_tokens}"


def _drops(paging: Paging, candidates: Iterable[Segment], why: str) -> Iterator[int]:
    for segment in candidates:
        if saved_tokens := paging.drop(segment, f"can be had again; {why}"):
            yield saved_tokens


def _segments_of(found: Iterable[Exchange]) -> list[Segment]:
    return [segment for exchange in found for step in exchange for segment in step]


def _earlier_results(current: Exchange) -> list[Segment]:
    """The tool results of an exchange but for those of its newest step that has any."""
    results = [[s for s in step if s.is_result] for step in current]
    return [segment for step in [step for step in results if step][:-1] for segment in step]
