"""Contexts: what a model sees of a conversation, within a token budget.

Owns the ordered segments of one context, their exact token counts and the record of what was done
to them. Refuses to know models, KV and the store: counting is a function that it is given, and what
left the window is handed to the caller, who remembers it. Which segments leave is `paging.py`.

A context has one owner at a time; nothing here is locked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from llmos.memory.paging import Count, Paging
from llmos.memory.segments import Segment, new_segment
from llmos.syscalls.content import Message
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ContextInfo, SegmentInfo, SegmentKind


class Context:
    """A conversation under a budget.

    `count` gives the tokens of a conversation as the model's own template renders it, ready for the
    answer; it is called with at least one message.
    """

    def __init__(self, context: int, *, model: str, budget_tokens: int, count: Count) -> None:
        self.context = context
        self.model = model
        self.budget_tokens = budget_tokens
        self._count = count
        self._window: dict[int, Segment] = {}  # by index, in order
        self._gone: list[SegmentInfo] = []
        self._actions: list[str] = []
        self._used_tokens = 0
        self._appended = 0

    def append(
        self,
        messages: Sequence[Message],
        *,
        kind: SegmentKind | None = None,
        reserve_tokens: int = 0,
    ) -> list[Segment]:
        """Append messages and make room for them and `reserve_tokens` of answer.

        Returns the segments that were paged out, oldest first, for the caller to remember. Without
        `kind` it follows from each message's role. No messages at all just makes room.
        Raises: SyscallError("context_overflow") when the policy cannot make room; nothing changed
        then.
        """
        window, used_tokens = dict(self._window), self._used_tokens
        for index, message in enumerate(messages, start=self._appended):
            conversation = [*(segment.message for segment in window.values()), message]
            before, used_tokens = used_tokens, self._count(conversation)
            # A template that shortens earlier turns (hidden reasoning) can make this negative.
            window[index] = new_segment(index, message, kind, max(0, used_tokens - before))
        paging = Paging(window, used_tokens, self._count)
        paging.make_room(self.budget_tokens - reserve_tokens)
        paged_out = self._record(paging)
        self._window, self._used_tokens = paging.window, paging.used_tokens
        self._appended += len(messages)
        return paged_out

    def window(self) -> list[Message]:
        """The messages that the model sees now."""
        return [segment.message for segment in self._window.values()]

    def fork(self, context: int) -> Context:
        """An independent copy under another id, with the same window and history."""
        copy = Context(
            context, model=self.model, budget_tokens=self.budget_tokens, count=self._count
        )
        copy._window = dict(self._window)
        copy._gone = list(self._gone)
        copy._actions = list(self._actions)
        copy._used_tokens = self._used_tokens
        copy._appended = self._appended
        return copy

    def pin(self, segment: int, is_pinned: bool) -> None:
        """Keep a segment in the window whatever the policy does, or release it.

        Raises: SyscallError("not_found"); SyscallError("invalid") for a segment that has left the
        window, and for releasing a system segment.
        """
        found = self._window.get(segment)
        if found is None or found.state != "in_window":
            raise self._not_in_window(segment)
        if found.own_kind == "system" and not is_pinned:
            raise SyscallError(
                "invalid",
                f"segment {segment} is a system message and always stays",
                field="segment",
            )
        self._window[segment] = replace(found, is_pinned=is_pinned)

    def info(self) -> ContextInfo:
        """What the model sees, what left the window, and why."""
        present = (segment.info() for segment in self._window.values())
        return ContextInfo(
            context=self.context,
            model=self.model,
            budget_tokens=self.budget_tokens,
            used_tokens=self._used_tokens,
            segments=tuple(sorted((*self._gone, *present), key=lambda info: info.index)),
            actions=tuple(self._actions),
        )

    def _record(self, paging: Paging) -> list[Segment]:
        """Note what was done; of what is gone only a preview is kept."""
        changed = [paging.changed[index] for index in sorted(paging.changed)]
        self._gone.extend(s.info() for s in changed if s.index not in paging.window)
        noticed = {s.index for s in self._window.values() if s.state == "dropped"}
        dropped = [s.index for s in changed if s.state == "dropped" and s.index not in noticed]
        if dropped:
            self._actions.append(f"dropped tool results or recalled material: {_ranges(dropped)}")
        paged_out = [segment for segment in changed if segment.state == "paged_out"]
        if paged_out:
            gone = _ranges([segment.index for segment in paged_out])
            self._actions.append(f"paged out to the long-term store: {gone}")
        return paged_out

    def _not_in_window(self, segment: int) -> SyscallError:
        states = {info.index: info.state for info in self.info().segments}
        if segment not in states:
            return SyscallError(
                "not_found",
                f"context {self.context} has no segment {segment}",
                what="segment",
                name=str(segment),
            )
        return SyscallError(
            "invalid",
            f"segment {segment} is {states[segment]}: it has left the window; retrieve it and "
            "append it again",
            field="segment",
        )


def _ranges(indices: Sequence[int]) -> str:
    """Sorted indices as text: [1, 2, 3, 7] is 'segments 1-3, 7'."""
    breaks = [i for i, (a, b) in enumerate(pairwise(indices), start=1) if b != a + 1]
    runs = [indices[a:b] for a, b in pairwise([0, *breaks, len(indices)])]
    return "segments " + ", ".join(
        str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs
    )
