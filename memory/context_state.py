"""What a context consists of, apart from who counts and who decides: copied, saved and restored."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from llmos.memory.segments import Segment
from llmos.syscalls.results import Composition, SegmentInfo


class Pages(NamedTuple):
    """Where some of what was paged out is: a namespace, and the mark that its notes bear there."""

    namespace: str
    mark: str


@dataclass(slots=True)
class ContextState:
    """The mutable part of a context.

    `window` is in the order that the model sees, by index; `gone` keeps a preview of what has left.
    `pages` tells where that can be recalled from: a fork shares what was paged out before it, and
    neither side sees what the other pages out later. `core` is the newest text of core memory,
    which the window may not show yet. `namespace` is where pages go and all may be recalled from,
    None for the process's own and the context's own pages; `recall_tokens` bounds one recall.
    With `has_summary` what leaves is also summed up.
    """

    window: dict[int, Segment] = field(default_factory=dict[int, Segment])
    gone: list[SegmentInfo] = field(default_factory=list[SegmentInfo])
    actions: list[str] = field(default_factory=list[str])
    history: list[Composition] = field(default_factory=list[Composition])
    used_tokens: int = 0
    appended: int = 0
    pages: tuple[Pages, ...] = ()
    is_page_open: bool = False
    core: str | None = None
    namespace: str | None = None
    recall_tokens: int = 0
    has_summary: bool = False

    def copy(self) -> ContextState:
        """An independent copy; segments and records are immutable, and shared."""
        return replace(
            self,
            window=dict(self.window),
            gone=list(self.gone),
            actions=list(self.actions),
            history=list(self.history),
        )
