"""Contexts: what a model sees of a conversation, within a token budget.

Owns the ordered segments of one context, their exact token counts and the record of what was done
to them. Refuses to know models, KV and the store: counting is a function that it is given, and what
left the window is handed to the caller, who remembers or summarises it. Which segments leave is a
policy's choice (`context_policy.py`).

A context has one owner at a time; nothing here is locked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import NamedTuple

from llmos.memory.context_policy import POLICIES, SUMMARY_TOKENS, ContextPolicy
from llmos.memory.context_record import actions, can_return, composition, listed
from llmos.memory.context_state import ContextState
from llmos.memory.paging import Count, Paging
from llmos.memory.segments import Segment, conversation, new_segment
from llmos.syscalls.content import Message, system, user
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import (
    ContextDifference,
    ContextInfo,
    SegmentKind,
)
from llmos.syscalls.results import ContextPolicy as PolicyName

HISTORY = 512  # compositions that are kept
RECALLED = "From earlier:"
SUMMARISED = "The conversation so far, summarised:"
CORE = "What you must always know:"


class Recollection(NamedTuple):
    """A note that may be shown again, as text for the model; `order` is its place among others."""

    note: int
    text: str
    order: tuple[float, int]


class Context:
    """A conversation under a budget.

    `count` gives the tokens of a conversation as the model's own template renders it, ready for the
    answer; it is called with at least one message. `policy` stands in for the named one in
    experiments.
    """

    def __init__(
        self,
        context: int,
        *,
        model: str,
        budget_tokens: int,
        count: Count,
        policy: PolicyName = "default",
        state: ContextState | None = None,
        by: ContextPolicy | None = None,
    ) -> None:
        self.context = context
        self.model = model
        self.budget_tokens = budget_tokens
        self.policy_name: PolicyName = policy
        self.policy = by or POLICIES[policy]
        self.state = state or ContextState()
        self._count = count

    # --- what comes in ----------------------------------------------------------------------------

    def append(
        self,
        messages: Sequence[Message],
        *,
        kind: SegmentKind | None = None,
        reserve_tokens: int = 0,
    ) -> list[Segment]:
        """Append messages and make room for them and `reserve_tokens` of answer.

        Returns the segments that were paged out or summarised, oldest first, for the caller to
        keep (`kept`) or sum up (`summarise`). Without `kind` it follows from each message's role.
        No messages at all just makes room.
        Raises: SyscallError("context_overflow") when the policy cannot make room; nothing changed
        then.
        """
        state = self.state
        window, used_tokens = dict(state.window), state.used_tokens
        for index, message in enumerate(messages, start=state.appended):
            shown = conversation([*window.values(), new_segment(index, message, kind, 0)])
            before, used_tokens = used_tokens, self._count(shown)
            # A template that shortens earlier turns (hidden reasoning) can make this negative.
            window[index] = new_segment(index, message, kind, max(0, used_tokens - before))
        paging = Paging(window, used_tokens, self._count)
        self._make_room(paging, self.budget_tokens - reserve_tokens)
        left = self._record(paging)
        state.appended += len(messages)
        self._adopt(paging)
        return left

    def kept(self, segment: int, notes: Sequence[int]) -> None:
        """Put on record as which notes a segment that was paged out is kept."""
        gone = self.state.gone
        for place in range(len(gone) - 1, -1, -1):
            if gone[place].index == segment:
                gone[place] = gone[place].model_copy(update={"notes": tuple(notes)})
                return

    def recall(self, found: Sequence[Recollection], *, room_tokens: int) -> tuple[int, ...]:
        """Show notes right before the newest message, the best first as far as the room goes.

        The prefix before that message stays. Returns the notes that are shown, none when there is
        no room for the first.
        """
        state = self.state
        *before, newest = state.window.values()
        alone_tokens = self._count([newest.message])
        for size in range(len(found), 0, -1):
            notes = found[:size]
            lines = [f"- {one.text}" for one in sorted(notes, key=lambda one: one.order)]
            message = user("\n".join([RECALLED, *lines]))
            recalled = replace(
                new_segment(state.appended, message, "recalled", 0),
                notes=tuple(one.note for one in notes),
                reason=f"fits segment {newest.index}",
                is_derived=True,
            )
            # Rendering the whole window takes ten times as long as these two.
            if self._count(conversation([recalled, newest])) - alone_tokens > room_tokens:
                continue
            used_tokens = self._count(conversation([*before, recalled, newest]))
            added_tokens = max(0, used_tokens - state.used_tokens)
            if added_tokens > room_tokens:
                continue
            recalled = replace(recalled, tokens=added_tokens)
            state.actions.append(
                f"recalled for segment {newest.index}: {size} notes, {added_tokens} tokens"
            )
            self._insert([*before, recalled, newest], used_tokens)
            return recalled.notes
        return ()

    def summarise(self, text: str) -> None:
        """Put a summary of what has left before everything but the fixed beginning."""
        state = self.state
        message = user(f"{SUMMARISED}\n{text}")
        summary = replace(
            new_segment(state.appended, message, "summary", 0),
            reason="stands for the segments that are summarised",
            is_derived=True,
        )
        head, tail = self._parted()
        used_tokens = self._count(conversation([*head, summary, *tail]))
        summary = replace(summary, tokens=max(0, used_tokens - state.used_tokens))
        self._insert([*head, summary, *tail], used_tokens)

    def summary(self) -> str | None:
        """The newest summary in the window, without its heading."""
        for segment in self.state.window.values():
            if segment.own_kind == "summary":
                return segment.message.text.removeprefix(f"{SUMMARISED}\n")
        return None

    def set_core(self, text: str, *, is_urgent: bool) -> list[Segment]:
        """Show another text as core memory, now or with the next edit that loses the prefix.

        Until then the exchange that made the change is in the window: it leaves by such an edit.
        Returns what had to leave for it, as `append` does.
        Raises: SyscallError("context_overflow") when it does not fit; nothing changed then.
        """
        state = self.state
        paging = Paging(dict(state.window), state.used_tokens, self._count)
        before = state.core
        state.core = text
        present = next((one for one in paging.window.values() if one.own_kind == "core"), None)
        if present is not None and not is_urgent:
            return []
        try:
            if present is None:
                head, tail = self._parted()
                core = new_segment(state.appended, _core_message(text), "core", 0)
                paging.window = {one.index: one for one in (*head, core, *tail)}
                state.appended += 1
                present = core
            paging.rewrite(present.index, _core_message(text))
            self._make_room(paging, self.budget_tokens)
        except SyscallError:
            state.core = before
            raise
        left = self._record(paging)
        self._adopt(paging)
        return left

    def recount(self) -> list[Segment]:
        """Count the window again, by a model that may have changed, and make it fit.

        Returns what had to leave for it, as `append` does.
        Raises: SyscallError("context_overflow").
        """
        used_tokens = self._count(self.window())
        paging = Paging(dict(self.state.window), used_tokens, self._count)
        self._make_room(paging, self.budget_tokens)
        left = self._record(paging)
        self._adopt(paging)
        return left

    def pin(self, segment: int, is_pinned: bool) -> None:
        """Keep a segment in the window whatever the policy does, or release it.

        Raises: SyscallError("not_found"); SyscallError("invalid") for a segment that has left the
        window, and for releasing a system segment.
        """
        found = self.state.window.get(segment)
        if found is None or found.state != "in_window":
            raise self._not_in_window(segment)
        if found.own_kind in ("system", "core") and not is_pinned:
            raise SyscallError(
                "invalid",
                f"segment {segment} is a {found.own_kind} segment and always stays",
                field="segment",
            )
        self.state.window[segment] = replace(found, is_pinned=is_pinned)

    # --- what is there ----------------------------------------------------------------------------

    def window(self) -> list[Message]:
        """The messages that the model sees now."""
        return conversation(self.state.window.values())

    @property
    def summary_tokens(self) -> int:
        """Room that an edit leaves for a summary of what left; 0 when none is written."""
        is_wanted = self.policy.recalls and self.state.has_summary
        return SUMMARY_TOKENS if self.policy.summarises or is_wanted else 0

    @property
    def newest(self) -> Segment | None:
        """The newest segment in the window."""
        return next(reversed(self.state.window.values()), None)

    @property
    def free_tokens(self) -> int:
        return self.budget_tokens - self.state.used_tokens

    def shown_notes(self) -> set[int]:
        """The notes that recalled segments still show."""
        return {
            note
            for segment in self.state.window.values()
            if segment.own_kind == "recalled"
            for note in segment.notes
        }

    def fork(self, context: int) -> Context:
        """An independent copy under another id, with the same window and history."""
        return Context(
            context,
            model=self.model,
            budget_tokens=self.budget_tokens,
            count=self._count,
            policy=self.policy_name,
            state=self.state.copy(),
            by=self.policy,
        )

    def difference(self, other: Context, *, shared_tokens: int) -> ContextDifference:
        """How this window and another differ; the caller knows the rendered tokens."""
        left, right = list(self.state.window.values()), list(other.state.window.values())
        pairs = zip(left, right, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0].message == pair[1].message, pairs))
        return ContextDifference(
            shared_segments=shared,
            shared_tokens=shared_tokens,
            only_left=tuple(segment.info() for segment in left[shared:]),
            only_right=tuple(segment.info() for segment in right[shared:]),
        )

    def info(self) -> ContextInfo:
        """What the model sees, what left the window, and why."""
        state = self.state
        return ContextInfo(
            context=self.context,
            model=self.model,
            budget_tokens=self.budget_tokens,
            used_tokens=state.used_tokens,
            segments=listed(state.gone, list(state.window.values()), state.appended),
            actions=tuple(state.actions),
            policy=self.policy_name,
            history=tuple(state.history),
        )

    # --- internals --------------------------------------------------------------------------------

    def _parted(self) -> tuple[list[Segment], list[Segment]]:
        """The fixed segments that the window begins with, and the others."""
        window = list(self.state.window.values())
        head = list(takewhile(lambda one: one.is_fixed, window))
        return head, window[len(head) :]

    def _insert(self, window: Sequence[Segment], used_tokens: int) -> None:
        """Take a window that has one new segment, which belongs to the last append."""
        self.state.appended += 1
        paging = Paging({one.index: one for one in window}, used_tokens, self._count)
        self._adopt(paging, is_new=False)

    def _make_room(self, paging: Paging, room_tokens: int) -> None:
        is_over = paging.used_tokens > room_tokens
        lower_tokens = room_tokens - (self.summary_tokens if is_over else 0)
        self.policy.make_room(paging, lower_tokens)
        core = next((one for one in paging.window.values() if one.own_kind == "core"), None)
        left = (one for one in paging.changed.values() if one.index not in paging.window)
        loses_prefix = not all(map(can_return, left))
        if core is not None and self.state.core is not None and loses_prefix:
            wanted = _core_message(self.state.core)
            if core.message != wanted:
                paging.rewrite(core.index, wanted)
                self.policy.make_room(paging, lower_tokens)
        if paging.used_tokens > room_tokens:
            raise SyscallError(
                "context_overflow",
                f"what must stay in the window (system, pinned and the newest messages) takes "
                f"{paging.used_tokens} tokens and there is room for {room_tokens}; shorten it, "
                "unpin something, or open the context with a larger budget_tokens",
                prompt_tokens=paging.used_tokens,
                limit_tokens=room_tokens,
            )

    def _adopt(self, paging: Paging, *, is_new: bool = True) -> None:
        """Take an edited window as the context's own, and put its composition on record."""
        state = self.state
        made = composition(list(state.window.values()), list(paging.window.values()))
        if not is_new and state.history:  # what was recalled or summarised belongs to the append
            recomputed = max(made.recomputed_tokens, state.history.pop().recomputed_tokens)
            made = made.model_copy(update={"recomputed_tokens": recomputed})
        state.window, state.used_tokens = paging.window, paging.used_tokens
        state.history.append(made)
        del state.history[:-HISTORY]

    def _record(self, paging: Paging) -> list[Segment]:
        """Note what was done; of what is gone only a preview is kept."""
        state = self.state
        changed = [paging.changed[index] for index in sorted(paging.changed)]
        state.gone.extend(s.info() for s in changed if s.index not in paging.window)
        noticed = {s.index for s in state.window.values() if s.state == "dropped"}
        state.actions += actions(changed, noticed)
        return [segment for segment in changed if segment.state in ("paged_out", "summarised")]

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


def _core_message(text: str) -> Message:
    return system(f"{CORE}\n{text}")
