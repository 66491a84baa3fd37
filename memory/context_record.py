"""The record of a context: what was done to its window, in words and in numbers.

Pure functions over segments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise, takewhile

from llmos.memory.segments import Segment
from llmos.syscalls.results import Composition, SegmentInfo, SegmentKind


def actions(changed: Sequence[Segment], noticed: set[int]) -> list[str]:
    """What an edit did, as `ContextStat` tells it; `noticed` are results dropped before."""
    dropped = [s for s in changed if s.state == "dropped" and s.index not in noticed]
    done = (
        ("dropped tool results or recalled material", filter(can_return, dropped)),
        ("dropped from the window", (s for s in dropped if not can_return(s))),
        ("paged out to the long-term store", (s for s in changed if s.state == "paged_out")),
        ("summarised", (s for s in changed if s.state == "summarised")),
    )
    listed = ((text, [segment.index for segment in segments]) for text, segments in done)
    return [f"{text}: {_ranges(indices)}" for text, indices in listed if indices]


def can_return(segment: Segment) -> bool:
    """Whether what a segment says can be had again: by the tool, or by another recall."""
    return segment.is_result or segment.own_kind == "recalled"


def composition(before: Sequence[Segment], after: Sequence[Segment]) -> Composition:
    """What a window is made of, and what its last change makes the device compute again."""
    tokens = Counter[SegmentKind]()
    for segment in after:
        tokens[segment.kind] += segment.tokens
    return Composition(
        newest=max((segment.index for segment in after), default=0),
        tokens=dict(tokens),
        recomputed_tokens=_recomputed_tokens(before, after),
    )


def listed(
    gone: Iterable[SegmentInfo], window: Sequence[Segment], end: int
) -> tuple[SegmentInfo, ...]:
    """All segments: the window's in its order, those that have left where they came."""
    earliest = end
    present = list[tuple[int, SegmentInfo]]()
    for segment in reversed(window):
        earliest = min(earliest, segment.index)
        present.append((earliest, segment.info()))
    places = [*((one.index, one) for one in gone), *reversed(present)]
    return tuple(one for _, one in sorted(places, key=lambda pair: pair[0]))


def _recomputed_tokens(before: Sequence[Segment], after: Sequence[Segment]) -> int:
    """Tokens of kept segments that stand behind the first change of what was there before."""
    pairs = zip(before, after, strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    kept = {segment.index for segment in before}
    return sum(segment.tokens for segment in after[same:] if segment.index in kept)


def _ranges(indices: Sequence[int]) -> str:
    """Sorted indices as text: [1, 2, 3, 7] is 'segments 1-3, 7'."""
    breaks = [i for i, (a, b) in enumerate(pairwise(indices), start=1) if b != a + 1]
    runs = [indices[a:b] for a, b in pairwise([0, *breaks, len(indices)])]
    return "segments " + ", ".join(
        str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs
    )
