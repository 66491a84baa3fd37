"""Pictures of scores as SVG: confusion, reliability, bars with intervals, curves, matrices.

Owns the drawing, by matplotlib without its global state of figures. Text stays text in the files,
and the same figures give the same file. Refuses to know where a picture is shown. Any thread.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from llmos.syscalls.evaluation_results import Table

_MAIN, _PALE, _LINE = "#1f6f8b", "#b8c4cc", "#c2452d"
_NUMBERED_CLASSES = 16  # a larger matrix has colours alone: numbers would be unreadable
_NAMED_CLASSES = 40
_STYLE: dict[Any, Any] = {  # names of matplotlib's settings
    "svg.fonttype": "none",
    "svg.hashsalt": "llmos",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_styling = threading.Lock()  # matplotlib's settings are one for all threads


def confusion(table: Table) -> str:
    """What is taken for what: rows are the truth, columns what was said, shaded by row share."""
    labels = table.columns[1:]
    counts = [list(row[1:]) for row in table.rows]
    shares = [[count / (sum(row) or 1) for count in row] for row in counts]
    return _heat(shares, counts, labels, labels, across="said", down="true")


def matrix(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    across: str,
    down: str,
) -> str:
    """Figures from 0 to 1 in rows and columns; None is a field left empty."""
    texts = [["" if value is None else f"{value:.2f}" for value in row] for row in values]
    return _heat(
        [[value or 0.0 for value in row] for row in values],
        texts,
        rows,
        columns,
        across=across,
        down=down,
    )


def reliability(table: Table) -> str:
    """How often a model is right by how sure it was, with the rows of each bin below."""
    bins = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    with _figure(4.2, 4.4) as (figure, saved):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        edges, width = [one["from"] for one in bins], 1 / len(bins)
        upper.bar(
            edges,
            [one["accuracy"] for one in bins],
            width,
            align="edge",
            color=_MAIN,
            edgecolor="white",
        )
        upper.plot((0, 1), (0, 1), color=_LINE, linestyle="--", label="calibrated")
        upper.set(ylabel="share that is right", ylim=(0, 1), xlim=(0, 1))
        upper.legend(frameon=False)
        lower.bar(
            edges,
            [one["rows"] for one in bins],
            width,
            align="edge",
            color=_PALE,
            edgecolor="white",
        )
        lower.set(xlabel="confidence", ylabel="rows")
    return saved[0]


def bars(
    values: Mapping[str, float],
    *,
    what: str,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    notes: Mapping[str, str] | None = None,
) -> str:
    """One bar a name, the first on top; with intervals as whiskers and notes behind the bars."""
    names = list(values)[::-1]
    with _figure(6.4, 0.7 + 0.32 * len(names)) as (figure, saved):
        axes = figure.subplots()
        axes.barh(names, [values[name] for name in names], color=_MAIN, height=0.6)
        for place, name in enumerate(names):
            end = values[name]
            if bounds := (intervals or {}).get(name):
                axes.plot(bounds, (place, place), color=_LINE, linewidth=1.5)
                end = max(end, bounds[1])
            note = (notes or {}).get(name, "")
            axes.text(end, place, f"  {values[name]:.3f}{note}", va="center")
        axes.set(xlabel=what, xlim=(0, max(1.0, *values.values()) * 1.12))
    return saved[0]


def curve(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    across: str,
    up: str,
    is_log: bool = False,
) -> str:
    """Lines of (x, y) points by name, such as training and held-out loss by step."""
    with _figure(6.4, 3.0) as (figure, saved):
        axes = figure.subplots()
        for (name, points), colour in zip(lines.items(), _colours(len(lines)), strict=True):
            xs, ys = zip(*points, strict=True)
            marker = "o" if len(points) < 30 else ""
            axes.plot(xs, ys, color=colour, label=name, marker=marker, markersize=3)
        axes.set(xlabel=across, ylabel=up)
        if is_log:
            axes.set_yscale("log")
        if len(lines) > 1:
            axes.legend(frameon=False)
    return saved[0]


def _heat(
    shades: Sequence[Sequence[float]],
    texts: Sequence[Sequence[Any]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    across: str,
    down: str,
) -> str:
    most = max(len(rows), len(columns))
    side = min(9.0, 1.8 + 0.42 * most)
    with _figure(side, side) as (figure, saved):
        axes = figure.subplots()
        axes.imshow(shades, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        if most <= _NAMED_CLASSES:
            axes.set_xticks(range(len(columns)), columns, rotation=90)
            axes.set_yticks(range(len(rows)), rows)
        else:
            axes.set(xticks=[], yticks=[])
        if most <= _NUMBERED_CLASSES:
            for i, row in enumerate(texts):
                for j, text in enumerate(row):
                    if text not in (0, ""):
                        colour = "white" if shades[i][j] > 0.6 else "black"
                        axes.text(j, i, str(text), ha="center", va="center", color=colour)
        axes.set(xlabel=across, ylabel=down)
    return saved[0]


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    known: list[Any] = [_MAIN, _LINE, _PALE]
    if count <= len(known):
        return known[:count]
    return [colormaps["tab20"](place % 20) for place in range(count)]


@contextmanager
def _figure(width: float, height: float) -> Generator[tuple[Any, list[str]]]:
    """A figure to draw on, in inches, and where its SVG is once it is drawn."""
    import matplotlib
    from matplotlib.figure import Figure

    saved: list[str] = []
    with _styling, matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, saved
        saved.append(_svg(figure))


def drawn_by(draw: Callable[[], Any]) -> str:
    """The picture that a function draws by pyplot, given by the axes (or array of them) it returns.

    For libraries that know no other way; the figure is closed.
    """
    import matplotlib
    from matplotlib import pyplot

    with _styling, matplotlib.rc_context({**_STYLE, "backend": "agg"}):
        axes = draw()
        figure = axes.figure if hasattr(axes, "figure") else axes.flat[0].figure
        try:
            return _svg(figure)
        finally:
            pyplot.close(figure)


def _svg(figure: Any) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
    text = file.getvalue().decode()
    return text[text.index("<svg") :]  # without the header of a file
