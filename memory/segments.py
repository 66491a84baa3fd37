"""The parts of a context: segments, and how they hang together.

A segment is one message. Segments that make sense only together are a *step* (an assistant message
with tool requests and the results that answer it); what one user turn set off is an *exchange*.
Pure values; what leaves the window is decided in `context_policy.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from llmos.syscalls.content import Message, TextPart, user
from llmos.syscalls.results import SegmentInfo, SegmentKind

SegmentState = Literal["in_window", "dropped", "paged_out", "summarised"]
PREVIEW_CHARACTERS = 80
DROPPED_RESULT = "(this tool result was dropped to save room; call the tool again if needed)"


@dataclass(frozen=True, slots=True)
class Segment:
    """One message of a context.

    `tokens` is what the message added to the rendered conversation when it was appended; the first
    one's include what the template adds to every conversation. They stay as they were then, also
    when a dropped result has left a short notice in its place. `notes` are the ids of the notes
    that it was remembered as, or that it shows when the kernel recalled it; `reason` says why it is
    where it is, when a policy put it there. `is_derived` when the kernel made it of other segments
    or of notes, so that nothing is lost with it.
    """

    index: int
    own_kind: SegmentKind
    message: Message
    tokens: int
    preview: str
    is_pinned: bool = False
    state: SegmentState = "in_window"
    notes: tuple[int, ...] = ()
    reason: str | None = None
    is_derived: bool = False

    @property
    def kind(self) -> SegmentKind:
        """The kind as shown: a pinned segment is `pinned` until it is released."""
        return "pinned" if self.is_pinned else self.own_kind

    @property
    def is_fixed(self) -> bool:
        """Whether the segment stays in the window whatever the policy does."""
        return self.is_pinned or self.own_kind in ("system", "core")

    @property
    def is_result(self) -> bool:
        """Whether a notice can stand in for the text: a tool's result, however it is written."""
        return self.message.role == "tool" or self.own_kind == "tool_result"

    @property
    def is_recalled(self) -> bool:
        """Whether the message can go on its own: no request or result depends on it."""
        is_part_of_step = self.message.role == "tool" or bool(self.message.tool_requests)
        return self.own_kind == "recalled" and not is_part_of_step

    def info(self) -> SegmentInfo:
        """The segment as `ContextStat` shows it."""
        return SegmentInfo(
            index=self.index,
            kind=self.kind,
            tokens=self.tokens,
            state=self.state,
            preview=self.preview,
            notes=self.notes,
            reason=self.reason,
        )

    def leaving(self, state: SegmentState, reason: str) -> Segment:
        """The segment as it is put on record when it leaves the window."""
        return replace(self, state=state, reason=reason)

    def with_notice(self, reason: str) -> Segment:
        """A tool result whose text is replaced by a notice.

        The message itself stays: a request without an answer is malformed for many templates and
        servers, and the model should know that there was a result.
        """
        notice = self.message.model_copy(update={"parts": (TextPart(text=DROPPED_RESULT),)})
        return replace(self, message=notice, state="dropped", reason=reason)


Step = list[Segment]
Exchange = list[Step]


def new_segment(index: int, message: Message, kind: SegmentKind | None, tokens: int) -> Segment:
    """A segment for a message; without `kind` it follows from the role."""
    own_kind = kind if kind is not None and kind != "pinned" else _kind_of(message)
    preview = preview_of(message)
    return Segment(index, own_kind, message, tokens, preview, is_pinned=kind == "pinned")


def preview_of(message: Message) -> str:
    """How a message begins, in one line."""
    preview = " ".join(message.text.split())
    if len(preview) > PREVIEW_CHARACTERS:
        return preview[: PREVIEW_CHARACTERS - 1] + "…"
    return preview


def conversation(segments: Iterable[Segment]) -> list[Message]:
    """The messages that the model sees of some segments.

    What the kernel recalled is said together with the question that it precedes, and core memory
    with the system message before it: many templates refuse two messages in a row of one role.
    """
    messages: list[Message] = []
    lead: str | None = None
    for segment in segments:
        message = segment.message
        if segment.own_kind == "recalled" and segment.is_derived:
            lead = message.text
            continue
        if lead is not None:
            if message.role == "user":
                message = _led_by(lead, message)
            else:
                messages.append(user(lead))
            lead = None
        is_joined = segment.own_kind == "core" and messages and messages[-1].role == "system"
        if is_joined:
            messages[-1] = _led_by(messages[-1].text, message)
        else:
            messages.append(message)
    if lead is not None:
        messages.append(user(lead))
    return messages


def _led_by(lead: str, message: Message) -> Message:
    """A message with a text put before its own."""
    return message.model_copy(update={"parts": (TextPart(text=f"{lead}\n\n"), *message.parts)})


def exchanges(segments: Iterable[Segment]) -> list[Exchange]:
    """The exchanges of a window, oldest first; system segments belong to none.

    A user message starts one, together with recalled material right before it; recalled material
    after the question stays with the question.
    """
    found: list[Exchange] = []
    for segment in segments:
        if segment.own_kind in ("system", "core"):
            continue
        if not found or _starts_exchange(segment, found[-1]):
            found.append([])
        if found[-1] and _answers(segment, found[-1][-1]):
            found[-1][-1].append(segment)
        else:
            found[-1].append([segment])
    return found


def _starts_exchange(segment: Segment, current: Exchange) -> bool:
    before = [earlier for step in current for earlier in step]
    if segment.is_recalled:
        return any(earlier.message.role in ("assistant", "tool") for earlier in before)
    is_led_in = all(earlier.is_recalled for earlier in before)
    return segment.message.role == "user" and not is_led_in


def _answers(segment: Segment, step: Step) -> bool:
    request_ids = {request.id for request in step[0].message.tool_requests}
    return segment.message.role == "tool" and segment.message.tool_request_id in request_ids


def _kind_of(message: Message) -> SegmentKind:
    match message.role:
        case "system":
            return "system"
        case "tool":
            return "tool_result"
        case "user" | "assistant":
            return "dialogue"
