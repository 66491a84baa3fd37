"""A timeline as an SVG picture: one lane per process, one row per kind of work of a device.

Spans shorter than a pixel are merged with their neighbours, so that the picture stays small however
long the run was. Colours are CSS classes of the page around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from llmos.tables import count, seconds
from llmos.timeline import KINDS, Lane, Span, Step, Timeline

_WIDTH, _LABELS, _MARGIN = 1120.0, 210.0, 16.0
_LANE, _BAR, _RATE_LANE, _AXIS = 22.0, 12.0, 26.0, 26.0
_MERGE_PX = 0.75
_BINS = 240
_MAX_LANES = 120
_STEPS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)


def draw(timeline: Timeline) -> str:
    """The picture as an SVG element."""
    lanes = timeline.lanes[:_MAX_LANES]
    scale = _Scale(max(timeline.end_s, 1e-6))
    parts: list[str] = []
    y = _AXIS
    for name, steps in timeline.devices.items():
        kinds = [kind for kind in KINDS if any(kind in step.amounts for step in steps)]
        parts.append(_device(name, steps, kinds, y, scale))
        y += 18 + _RATE_LANE * len(kinds)
    for lane in lanes:
        parts.append(_lane(lane, y, scale))
        y += _LANE
    hidden = len(timeline.lanes) - len(lanes)
    if hidden > 0:
        parts.append(
            f'<text class="quiet" x="0" y="{y + 14:.0f}">and {hidden} more processes</text>'
        )
        y += _LANE
    height = y + 8
    return (
        f'<svg class="timeline" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" '
        f'aria-label="Timeline of {len(timeline.lanes)} processes over {seconds(timeline.end_s)}">'
        f"{_axis(scale, height)}{''.join(parts)}</svg>"
    )


# --- internals ------------------------------------------------------------------------------------


class _Scale:
    """Seconds to horizontal position."""

    def __init__(self, end_s: float) -> None:
        self.end_s = end_s
        self.px_per_s = (_WIDTH - _LABELS - _MARGIN) / end_s

    def __call__(self, time_s: float) -> float:
        return _LABELS + time_s * self.px_per_s


def _axis(scale: _Scale, height: float) -> str:
    step_s = next((step for step in _STEPS_S if scale.end_s / step <= 10), _STEPS_S[-1])
    lines: list[str] = []
    for number in range(int(scale.end_s / step_s) + 1):
        x = scale(number * step_s)
        lines.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="18" y2="{height:.0f}"/>'
            f'<text class="tick" x="{x:.1f}" y="12">{number * step_s:g} s</text>'
        )
    return "".join(lines)


def _lane(lane: Lane, y: float, scale: _Scale) -> str:
    top = y + (_LANE - _BAR) / 2
    life = f"{lane.name} (pid {lane.pid}): {seconds(lane.end_s - lane.start_s)}"
    if not lane.is_ok:
        life += ", did not end well"
    bars = [
        _bar("life" if lane.is_ok else "life failed", lane.start_s, lane.end_s, top, scale, life)
    ]
    for kind in KINDS:
        spans = [span for span in lane.spans if span.kind == kind]
        for merged, number in _merge(spans, _MERGE_PX / scale.px_per_s):
            times = f"{number} times in " if number > 1 else ""
            title = f"{merged.name}: {times}{seconds(merged.end_s - merged.start_s)}"
            bars.append(_bar(kind, merged.start_s, merged.end_s, top, scale, title))
    return (
        f'<g class="lane"><rect class="row" x="0" y="{y:.1f}" width="{_WIDTH:.0f}" '
        f'height="{_LANE:.0f}"/><text class="name" x="4" y="{y + 15:.1f}">'
        f'{escape(_short(lane.name))}<tspan class="quiet" dx="6">{lane.pid}</tspan></text>'
        f"{''.join(bars)}</g>"
    )


def _bar(kind: str, start_s: float, end_s: float, top: float, scale: _Scale, title: str) -> str:
    x = scale(start_s)
    width = max(0.6, scale(end_s) - x)
    rounding = 2 if width > 4 else 0
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{_BAR:.0f}" '
        f'rx="{rounding}"><title>{escape(title)}</title></rect>'
    )


def _merge(spans: Sequence[Span], gap_s: float) -> Iterable[tuple[Span, int]]:
    """Neighbours whose gap cannot be seen become one span; the number says how many it was."""
    current: Span | None = None
    number = 0
    for span in sorted(spans, key=lambda span: span.start_s):
        if (
            current is not None
            and span.start_s - current.end_s <= gap_s
            and (span.end_s - span.start_s <= gap_s or current.end_s - current.start_s <= gap_s)
        ):
            current = current._replace(end_s=max(current.end_s, span.end_s))
            number += 1
            continue
        if current is not None:
            yield current, number
        current, number = span, 1
    if current is not None:
        yield current, number


def _device(name: str, steps: Sequence[Step], kinds: Sequence[str], y: float, scale: _Scale) -> str:
    """What a device did a second over time, a row for each kind of work, each to its own scale."""
    bin_s = scale.end_s / _BINS
    rows: list[str] = []
    for index, kind in enumerate(kinds):
        rates = [0.0] * _BINS
        for step in steps:
            for position, share in _spread(step, bin_s):
                rates[position] += step.amounts.get(kind, 0) * share / bin_s
        top = y + 16 + _RATE_LANE * index
        label = f"{kind} peak {count(max(rates))} {'texts' if kind == 'embed' else 'tokens'}/s"
        rows.append(f'<text class="quiet" x="4" y="{top + 15:.1f}">{label}</text>')
        rows.append(_rates(kind, rates, top, _RATE_LANE - 4, scale))
    return (
        f'<g class="device"><text class="name" x="4" y="{y + 13:.1f}">{escape(_short(name))}</text>'
        f"{''.join(rows)}</g>"
    )


def _rates(kind: str, rates: Sequence[float], y: float, height: float, scale: _Scale) -> str:
    """One area: a device's rate of one kind."""
    base = y + height
    unit = (height - 3) / (max(rates) or 1.0)
    bin_px = scale.end_s / _BINS * scale.px_per_s
    corners = [f"{_LABELS:.1f},{base:.1f}"]
    for index, value in enumerate(rates):
        left, top = _LABELS + index * bin_px, base - value * unit
        corners.append(f"{left:.1f},{top:.1f} {left + bin_px:.1f},{top:.1f}")
    corners.append(f"{_LABELS + _BINS * bin_px:.1f},{base:.1f}")
    return (
        f'<polygon class="{kind}" points="{" ".join(corners)}"/>'
        f'<line class="base" x1="{_LABELS:.0f}" x2="{_WIDTH - _MARGIN:.0f}" y1="{base:.1f}" '
        f'y2="{base:.1f}"/>'
    )


def _spread(step: Step, bin_s: float) -> Iterable[tuple[int, float]]:
    """The bins that a step lies in, with the share of it in each."""
    first = min(_BINS - 1, int(step.start_s / bin_s))
    last = min(_BINS - 1, int(step.end_s / bin_s))
    length_s = max(step.end_s - step.start_s, 1e-9)
    if first == last:
        yield first, 1.0
        return
    for index in range(first, last + 1):
        inside_s = min(step.end_s, (index + 1) * bin_s) - max(step.start_s, index * bin_s)
        yield index, max(0.0, inside_s) / length_s


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:25]}…"
