"""A window's composition over time as an SVG picture: a column per append, a colour per kind.

Where the prefix was lost, a mark below the column is as tall as what had to be computed again. The
picture stands alone: no style sheet, no script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from llmos.syscalls.results import Composition, ContextInfo, SegmentKind
from llmos.tables import count

_COLOURS: Mapping[SegmentKind, str] = {
    "system": "#3b4252",
    "core": "#b48ead",
    "pinned": "#5e81ac",
    "summary": "#ebcb8b",
    "recalled": "#a3be8c",
    "dialogue": "#88c0d0",
    "tool_result": "#d08770",
}
_LOST = "#bf616a"
_WIDTH, _LEFT, _HEIGHT, _BELOW, _HEAD, _GAP = 960.0, 60.0, 160.0, 40.0, 44.0, 24.0
_MOST_COLUMNS = 240


def draw(contexts: Sequence[ContextInfo]) -> str:
    """One picture of all contexts, one below the other."""
    step = _HEAD + _HEIGHT + _BELOW + _GAP
    height = step * len(contexts) + 30
    drawn = "".join(_drawn(info, place * step) for place, info in enumerate(contexts))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" '
        f'font-family="sans-serif" font-size="12" role="img" '
        f'aria-label="Composition of {len(contexts)} contexts">'
        f'<rect width="100%" height="100%" fill="white"/>{drawn}{_legend(height - 12)}</svg>\n'
    )


def _drawn(info: ContextInfo, top: float) -> str:
    history = info.history[-_MOST_COLUMNS:]
    base, scale = top + _HEAD + _HEIGHT, _HEIGHT / info.budget_tokens
    lost = sum(one.recomputed_tokens for one in history)
    title = (
        f"context {info.context} of {info.model}, policy {info.policy}: "
        f"{count(info.used_tokens)} of {count(info.budget_tokens)} tokens; "
        f"{count(lost)} computed again in {len(history)} appends"
    )
    pitch = (_WIDTH - _LEFT - 16) / max(len(history), 24)
    columns = "".join(
        _column(one, _LEFT + place * pitch, pitch * 0.9, base, scale)
        for place, one in enumerate(history)
    )
    limit = base - _HEIGHT
    return (
        f'<text x="8" y="{top + 18:.0f}" font-weight="bold">{escape(title)}</text>'
        f'<line x1="{_LEFT}" x2="{_WIDTH - 16}" y1="{limit:.1f}" y2="{limit:.1f}" '
        f'stroke="{_LOST}" stroke-dasharray="4 3"/>'
        f'<text x="8" y="{limit + 4:.1f}">{count(info.budget_tokens)}</text>'
        f'<text x="8" y="{base:.1f}">0</text>{columns}'
    )


def _column(one: Composition, x: float, width: float, base: float, scale: float) -> str:
    parts = list[str]()
    y = base
    for kind, colour in _COLOURS.items():
        tokens = one.tokens.get(kind, 0)
        if tokens:
            y -= tokens * scale
            parts.append(_bar(x, y, width, tokens * scale, colour, f"{kind}: {count(tokens)}"))
    if one.recomputed_tokens:
        tall = min(one.recomputed_tokens * scale, _HEIGHT) * _BELOW / _HEIGHT
        said = f"{count(one.recomputed_tokens)} tokens computed again"
        parts.append(_bar(x, base + 2, width, tall, _LOST, said))
    return f"<g>{''.join(parts)}</g>"


def _bar(x: float, y: float, width: float, height: float, colour: str, said: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill="{colour}"><title>{escape(said)}</title></rect>'
    )


def _legend(y: float) -> str:
    parts, x = list[str](), _LEFT
    for name, colour in (*_COLOURS.items(), ("computed again", _LOST)):
        parts.append(
            f'<rect x="{x:.0f}" y="{y - 10:.0f}" width="10" height="10" fill="{colour}"/>'
            f'<text x="{x + 14:.0f}" y="{y:.0f}">{name.replace("_", " ")}</text>'
        )
        x += 30 + 7 * len(name)
    return "".join(parts)
