"""Pictures of what the benchmarks measured, from their reports; needs matplotlib (extra `bench`).

A benchmark that compares sides has bars of those sides (`panels.py`), `agents` a curve of who has
finished when, and every other one its figures beside what they must reach. Text stays text in the
files, which are small and the same for the same figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.panels import PANELS, Bars

_OURS, _OTHERS = "#1f6f8b", "#b8c4cc"
_SIZE = (7.2, 2.8)
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "llmos",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
SIDE_NAMES = {
    "ours": "llmos",
    "tuned": "llmos, tuned",
    "server": "llama-server, separate KV",
    "server_default": "llama-server, default flags",
    "python": "llama-cpp-python's server",
}


def draw(report: Mapping[str, Any], path: Path) -> bool:
    """Write the picture of a report as SVG; False when it has nothing to show."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure = _figure(report)
        if figure is None:
            return False
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight", transparent=False)
    return True


def _figure(report: Mapping[str, Any]) -> Any:
    name = report["benchmark"]
    panels = [_measured(bars, report) for bars in PANELS.get(name, ())]
    panels = [panel for panel in panels if panel.sides]
    if report.get("completions_s"):
        return _finished(report["completions_s"])
    if panels:
        return _sides(panels, report)
    return _floors(report)


def _measured(bars: Bars, report: Mapping[str, Any]) -> Bars:
    """The panel without the sides that were not measured."""
    sides = {side: key for side, key in bars.sides.items() if report.get(key) is not None}
    return bars._replace(sides=sides)


def _sides(panels: Sequence[Bars], report: Mapping[str, Any]) -> Any:
    figure, rows = _axes(len(panels))
    for axes, bars in zip(rows, panels, strict=True):
        values = [report[key] for key in bars.sides.values()]
        colours = [_OURS, *[_OTHERS] * (len(values) - 1)]
        drawn = axes.barh(list(bars.sides), values, color=colours)
        axes.bar_label(drawn, fmt="{:,.4g}", padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set(title=bars.title, xlabel=bars.unit)
    return figure


def _finished(completions_s: Mapping[str, Sequence[float]]) -> Any:
    """How many agents have finished, over time: mean completion is the area left of a curve."""
    figure, (axes,) = _axes(1)
    for side, ends in completions_s.items():
        is_ours = side in ("ours", "tuned")
        axes.step(
            [0.0, *sorted(ends)],
            range(len(ends) + 1),
            where="post",
            label=SIDE_NAMES[side],
            linewidth=2.2 if is_ours else 1.4,
            linestyle="--" if side in ("tuned", "server_default") else "-",
            color=_OURS if is_ours else None,
        )
    axes.set(xlabel="seconds", ylabel="agents that have finished")
    axes.legend(frameon=False, loc="lower right")
    return figure


def _floors(report: Mapping[str, Any]) -> Any:
    """Every figure with a floor, as a share of it; the line is what must be reached."""
    judged = [one for one in report["floors"] if one["value"] is not None and one["floor"]]
    if not judged:
        return None
    figure, (axes,) = _axes(1)
    names = [f"{one['name']} {one['op']} {one['floor']:g}" for one in judged]
    drawn = axes.barh(names, [one["value"] / one["floor"] for one in judged], 0.5, color=_OURS)
    axes.bar_label(drawn, labels=[f"{one['value']:,.4g}" for one in judged], padding=3)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="measured, as a share of what it is compared with")
    return figure


def _axes(columns: int) -> tuple[Any, list[Any]]:
    """A figure that no window shows, and its panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    panels: Any = figure.subplots(1, columns, squeeze=False)
    return figure, list(panels[0])
