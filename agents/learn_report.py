"""A learning loop's report: its rounds as a table and a picture, in Markdown and in HTML.

Made from the loop's events alone, so that it can be written at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from llmos.agents.learn_record import (
    Collected,
    Ended,
    Event,
    Judged,
    Measured,
    Started,
    TrainedVersion,
)
from llmos.agents.learn_statistics import Interval, success_rate

_HEAD = (
    "round",
    "tasks",
    "solved",
    "new rows",
    "rows trained",
    "train loss",
    "version",
    "success on held-out tasks",
    "gain",
    "verdict",
)
_WHY = {
    "rounds": "all rounds are done",
    "seconds": "the time is spent",
    "tokens": "the tokens are spent",
    "patience": "the last versions were no better",
}
_VERDICTS = {
    "promoted": "promoted",
    "discarded": "discarded",
    "refused": "refused by the gate",
    "too_little_data": "too little data yet",
}
_WIDTH, _HEIGHT, _MARGIN = 640, 260, 46


def markdown_report(title: str, events: Sequence[Event]) -> str:
    """The report as Markdown."""
    lines = [f"# {title}", "", _summary(events), "", _row(_HEAD), _row(["---"] * len(_HEAD))]
    lines += [_row(cells) for cells in _rounds(events)]
    kinds = _by_kind(events)
    if kinds:
        lines += [
            "",
            "## Held-out tasks by kind",
            "",
            _row(kinds[0]),
            _row(["---"] * len(kinds[0])),
        ]
        lines += [_row(cells) for cells in kinds[1:]]
    return "\n".join(lines) + "\n"


def html_report(title: str, events: Sequence[Event]) -> str:
    """The report as one HTML page with its picture inside."""
    kinds = _by_kind(events)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1><p>{escape(_summary(events))}</p>",
        picture(events),
        _table([_HEAD, *_rounds(events)]),
    ]
    if kinds:
        parts += ["<h2>Held-out tasks by kind</h2>", _table(kinds)]
    parts.append(f"<p class=small>{escape(_NOTE)}</p></html>")
    return "\n".join(parts) + "\n"


def picture(events: Sequence[Event]) -> str:
    """The success rate of each version measured, with its interval, as SVG."""
    points = _points(events)
    if not points:
        return ""
    step = (_WIDTH - 2 * _MARGIN) / max(1, len(points))
    drawn = [_scale()]
    path: list[str] = []
    for index, point in enumerate(points):
        x = _MARGIN + step * (index + 0.5)
        colour = "#1b7f5c" if point.is_in_use else "#b0552f"
        low, high, y = (_y(v) for v in (point.rate.low, point.rate.high, point.rate.value))
        drawn.append(
            f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{low:.0f}" y2="{high:.0f}" '
            f'stroke="{colour}" stroke-width="2"/>'
        )
        drawn.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="{colour}"/>')
        drawn.append(_text(x, y - 8, _percent(point.rate.value), shift=22))
        drawn.append(_text(x, _HEIGHT - 14, point.label))
        if point.is_in_use:
            path.append(f"{x:.0f},{y:.0f}")
    line = (
        f'<polyline points="{" ".join(path)}" fill="none" stroke="#1b7f5c" stroke-dasharray="4 3"/>'
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" '
        f'aria-label="success rate by version">{"".join([*drawn, line])}</svg>'
    )


# --- internals ------------------------------------------------------------------------------------

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.25rem .5rem;"
    "text-align:right}td:first-child,th{text-align:left}.small{color:#555;font-size:.85rem}"
)
_NOTE = (
    "Rates with Wilson's 95% interval; gains with a paired bootstrap's. A version is promoted when "
    "the lower bound of its gain over the one in use is above the plan's. Green was put in use."
)


class _Point(NamedTuple):
    label: str
    rate: Interval
    is_in_use: bool


def _summary(events: Sequence[Event]) -> str:
    measured = [event for event in events if isinstance(event, Measured)]
    if not measured:
        return "Nothing is measured yet."
    promoted = [e.version for e in events if isinstance(e, Judged) and e.verdict == "promoted"]
    said = f"At first {_rate(success_rate(measured[0].outcomes))} of the held-out tasks succeeded"
    if promoted:
        last = next(e for e in reversed(measured) if e.version == promoted[-1])
        said += f"; with {promoted[-1]}, in use now, {_rate(success_rate(last.outcomes))}"
    costly = [e for e in events if isinstance(e, Measured | Collected | TrainedVersion)]
    said += (
        f". {sum(e.seconds for e in costly):.0f} s and {sum(e.tokens for e in costly):,} tokens"
        " so far."
    )
    ended = events[-1] if isinstance(events[-1], Ended) else None
    return said if ended is None else f"{said} It ended: {_WHY[ended.why]}."


def _rounds(events: Sequence[Event]) -> list[list[str]]:
    numbers = sorted({e.round for e in events if not isinstance(e, Started | Ended)})
    return [_round(number, events) for number in numbers]


def _round(number: int, events: Sequence[Event]) -> list[str]:
    cells = dict.fromkeys(_HEAD, "")
    cells["round"] = str(number)
    for event in events:
        if isinstance(event, Started | Ended) or event.round != number:
            continue
        match event:
            case Collected():
                cells["tasks"], cells["solved"] = str(event.tried), str(event.solved)
                cells["new rows"] = str(event.rows)
            case TrainedVersion():
                cells["rows trained"], cells["version"] = str(event.rows), event.version
                if event.losses:
                    cells["train loss"] = f"{event.losses[0][1]:.2f} → {event.losses[-1][1]:.2f}"
            case Measured():
                cells["version"] = event.version or "base"
                cells["success on held-out tasks"] = _rate(success_rate(event.outcomes))
            case Judged():
                found = event.interval()
                cells["gain"] = "" if found is None else _gain(found)
                cells["verdict"] = _VERDICTS[event.verdict]
    return list(cells.values())


def _by_kind(events: Sequence[Event]) -> list[list[str]]:
    """How many tasks of each kind every version solved; the first row is the head."""
    measured = [event for event in events if isinstance(event, Measured)]
    if not measured:
        return []
    kinds = sorted(set(measured[0].kinds))
    rows = [["version", *kinds]]
    for event in measured:
        cells = [event.version or "base"]
        for kind in kinds:
            outcomes = [o for o, k in zip(event.outcomes, event.kinds, strict=True) if k == kind]
            cells.append(f"{sum(outcomes):.0f}/{len(outcomes)}")
        rows.append(cells)
    return rows


def _points(events: Sequence[Event]) -> list[_Point]:
    promoted = {e.version for e in events if isinstance(e, Judged) and e.verdict == "promoted"}
    return [
        _Point(
            event.version or "base",
            success_rate(event.outcomes),
            index == 0 or event.version in promoted,
        )
        for index, event in enumerate(e for e in events if isinstance(e, Measured))
    ]


def _scale() -> str:
    lines: list[str] = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(share)
        lines.append(
            f'<line x1="{_MARGIN}" x2="{_WIDTH - 10}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>'
        )
        lines.append(_text(24, y + 4, _percent(share)))
    return "".join(lines)


def _y(share: float) -> float:
    return _HEIGHT - 36 - share * (_HEIGHT - 56)


def _text(x: float, y: float, text: str, *, shift: float = 0.0) -> str:
    return (
        f'<text x="{x + shift:.0f}" y="{y:.0f}" font-size="12" text-anchor="middle">'
        f"{escape(text)}</text>"
    )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = ["<table>", "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in body]
    return "".join([*lines, "</table>"])


def _rate(rate: Interval) -> str:
    return f"{_percent(rate.value)} ({_percent(rate.low)} to {_percent(rate.high)})"


def _gain(found: Interval) -> str:
    return f"{found.value:+.0%} ({found.low:+.0%} to {found.high:+.0%})"


def _percent(share: float) -> str:
    return f"{share:.0%}"
