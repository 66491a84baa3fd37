"""Edits on a copy of a context's window: what a policy can do, and what each edit costs.

Every edit changes the prompt from that point on, and the KV computed behind it is lost. So a policy
is told what an edit saves and how many tokens it makes the device compute again, and can choose the
edit that is cheapest for the room it makes. Nothing is cut inside a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from llmos.memory.segments import Exchange, Segment, SegmentState, conversation, exchanges
from llmos.syscalls.content import Message

NOTICE_TOKENS = 32  # a dropped result's notice costs about this much; shorter results stay

Count = Callable[[Sequence[Message]], int]


@dataclass(slots=True)
class Paging:
    """One attempt to make room, on a copy of the window: a failed one changes nothing.

    `used_tokens` is exact before the policy acts and after `shrink`; what single edits save is the
    segments' own count, because counting exactly renders the whole conversation.
    """

    window: dict[int, Segment]
    used_tokens: int
    count: Count
    changed: dict[int, Segment] = field(default_factory=dict[int, Segment])  # as they are now

    def exchanges(self) -> tuple[list[Exchange], Exchange]:
        """The old exchanges, oldest first, and the current one."""
        *old, current = exchanges(self.window.values()) or [[]]
        return old, current

    def saving_tokens(self, segment: Segment) -> int:
        """What dropping a segment would save; 0 for one that is not to be dropped."""
        if segment.is_fixed or segment.state != "in_window" or segment.index not in self.window:
            return 0
        if segment.is_recalled:
            return segment.tokens
        if segment.is_result:
            return max(0, segment.tokens - NOTICE_TOKENS)
        return 0

    def behind_tokens(self, index: int) -> int:
        """What stands behind a segment: an edit there makes the device compute it again."""
        tokens, is_behind = 0, False
        for segment in self.window.values():
            if is_behind:
                tokens += segment.tokens
            is_behind = is_behind or segment.index == index
        return tokens

    def drop(self, segment: Segment, reason: str) -> int:
        """Drop recalled material, or a result but for a notice; returns what that saves.

        Both can be had again. Nothing happens to other segments.
        """
        saved_tokens = self.saving_tokens(segment)
        if not saved_tokens:
            return 0
        if segment.is_recalled:
            del self.window[segment.index]
            self.changed[segment.index] = segment.leaving("dropped", reason)
        else:
            self.window[segment.index] = self.changed[segment.index] = segment.with_notice(reason)
        return saved_tokens

    def take_out(self, exchange: Exchange, state: SegmentState, reason: str) -> int:
        """Take an exchange out of the window, but for steps with a pinned part; returns the saving.

        What the kernel made is not kept: recalled material is in the store already, and a summary
        is folded into the next.
        """
        saved_tokens = 0
        for step in exchange:
            if any(segment.is_fixed for segment in step):
                continue  # a request and its results stay together
            for segment in step:
                present = self.window.pop(segment.index, None)
                if present is None:  # recalled material, dropped a moment ago
                    continue
                if present.state != "in_window":  # the notice of a dropped result
                    self.changed[segment.index] = present
                    saved_tokens += NOTICE_TOKENS
                    continue
                as_what = state
                if present.is_derived:
                    as_what = "dropped" if present.own_kind == "recalled" else "summarised"
                self.changed[segment.index] = present.leaving(as_what, reason)
                saved_tokens += present.tokens
        return saved_tokens

    def shrink(self, savings: Iterable[int], goal_tokens: int) -> None:
        """Do edits, each of which returns what it saves, until the goal is reached.

        They are counted exactly when the goal should be reached by what they say.
        """
        if self.used_tokens <= goal_tokens:
            return
        expected = self.used_tokens
        for saved_tokens in savings:
            expected -= saved_tokens
            if expected <= goal_tokens:
                expected = self.used_tokens = self.exact_tokens()
                if expected <= goal_tokens:
                    return
        self.used_tokens = self.exact_tokens()

    def exact_tokens(self) -> int:
        """The tokens of the window as it is now."""
        messages = conversation(self.window.values())
        return self.count(messages) if messages else 0

    def rewrite(self, index: int, message: Message) -> None:
        """Put another text in a segment's place; `used_tokens` is exact afterwards."""
        before = self.used_tokens
        self.window[index] = replace(self.window[index], message=message)
        self.used_tokens = self.exact_tokens()
        segment = self.window[index]
        tokens = max(0, segment.tokens + self.used_tokens - before)
        self.window[index] = replace(segment, tokens=tokens)
