"""What leaves a context's window when it is over budget, and in which order.

1. Old tool results and recalled material: both can be had again. A result leaves a short notice.
2. Old exchanges, whole, oldest first. They go to the long-term store.
3. Only if it still does not fit: results of earlier steps of the current exchange, so that a long
   tool loop on one question can go on.

System and pinned segments and the newest step stay; when these alone are over budget the call is
refused. Nothing is cut inside a message.

Once anything must leave, we go down to LOW_WATER of the room instead of to its brim. Each removal
changes the prompt from that point on, and the KV computed behind it is lost. Removing a little
every turn would recompute most of the window every turn; removing a quarter at once keeps the
prefix stable until the next quarter has been said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from llmos.memory.segments import Exchange, Segment, exchanges
from llmos.syscalls.content import Message
from llmos.syscalls.errors import SyscallError

LOW_WATER = 0.75
NOTICE_TOKENS = 32  # a dropped result's notice costs about this much; shorter results stay

Count = Callable[[Sequence[Message]], int]


@dataclass(slots=True)
class Paging:
    """One attempt to make room, on a copy of the window: a failed one changes nothing."""

    window: dict[int, Segment]
    used_tokens: int
    count: Count
    changed: dict[int, Segment] = field(default_factory=dict[int, Segment])  # as they are now

    def make_room(self, room_tokens: int) -> None:
        """Bring the window down to `room_tokens`. Raises: SyscallError("context_overflow")."""
        if self.used_tokens <= room_tokens:
            return
        low_tokens = int(room_tokens * LOW_WATER)
        *old, current = exchanges(self.window.values()) or [[]]
        self._shrink(self._drops(_segments_of(old)), low_tokens)
        self._shrink(self._exits(old), low_tokens)
        if self.used_tokens > room_tokens:
            self._shrink(self._drops(_earlier_results(current)), low_tokens)
        if self.used_tokens > room_tokens:
            raise SyscallError(
                "context_overflow",
                f"what must stay in the window (system, pinned and the newest messages) takes "
                f"{self.used_tokens} tokens and there is room for {room_tokens}; shorten it, unpin "
                "something, or open the context with a larger budget_tokens",
                prompt_tokens=self.used_tokens,
                limit_tokens=room_tokens,
            )

    def _shrink(self, removals: Iterable[int], goal_tokens: int) -> None:
        """Remove until the goal is reached; each removal tells the tokens that it should save.

        Counting renders the whole conversation, so it is done when the goal should be reached by
        these estimates, not after every removal.
        """
        if self.used_tokens <= goal_tokens:
            return
        expected = self.used_tokens
        for saved_tokens in removals:
            expected -= saved_tokens
            if expected <= goal_tokens:
                expected = self.used_tokens = self._exact()
                if expected <= goal_tokens:
                    return
        self.used_tokens = self._exact()

    def _exact(self) -> int:
        return self.count([segment.message for segment in self.window.values()])

    def _drops(self, candidates: Sequence[Segment]) -> Iterator[int]:
        for segment in candidates:
            if segment.is_fixed or segment.state != "in_window":
                continue
            if segment.is_recalled:
                del self.window[segment.index]
                self.changed[segment.index] = replace(segment, state="dropped")
                yield segment.tokens
            elif segment.is_result and segment.tokens > NOTICE_TOKENS:
                self.window[segment.index] = segment.with_notice()
                self.changed[segment.index] = self.window[segment.index]
                yield segment.tokens - NOTICE_TOKENS

    def _exits(self, old: Sequence[Exchange]) -> Iterator[int]:
        for exchange in old:
            saved_tokens = 0
            for step in exchange:
                if any(segment.is_fixed for segment in step):
                    continue  # a request and its results stay together
                for segment in step:
                    present = self.window.pop(segment.index, None)
                    if present is None:  # recalled material, dropped a moment ago
                        continue
                    if present.state == "in_window":
                        self.changed[segment.index] = replace(present, state="paged_out")
                        saved_tokens += present.tokens
                    else:  # the notice of a dropped result goes with its exchange
                        self.changed[segment.index] = present
                        saved_tokens += NOTICE_TOKENS
            yield saved_tokens


def _segments_of(found: Iterable[Exchange]) -> list[Segment]:
    return [segment for exchange in found for step in exchange for segment in step]


def _earlier_results(current: Exchange) -> list[Segment]:
    """The tool results of an exchange but for those of its newest step that has any."""
    results = [[s for s in step if s.is_result] for step in current]
    return [segment for step in [step for step in results if step][:-1] for segment in step]
