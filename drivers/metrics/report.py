"""The report of an evaluation: one HTML page that needs nothing else, and the same in Markdown.

Owns the pages. Pictures stand inside the page, and beside the Markdown as files. Refuses to know
how figures were measured (`predictions.py`) and drawn (`pictures.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from llmos.drivers.metrics import pictures
from llmos.syscalls.evaluation_results import Evaluated, Searched, Table

# How each figure is called, and whether it is a share.
METRICS: Mapping[str, str] = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "f1": "Entity F1",
    "precision": "Precision",
    "recall": "Recall",
    "token_accuracy": "Accuracy over words",
    "calibration_error": "Expected calibration error",
    "exact_match": "Exact match",
    "rouge_l": "ROUGE-L",
    "loss": "Loss, nats",
    "perplexity": "Perplexity",
}
_MOST_ROWS = 100  # of a table on the page
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1b2a33}table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .7rem;border-bottom:
1px solid #d8e0e4;text-align:left}td.n{text-align:right;font-variant-numeric:tabular-nums}
svg{max-width:100%;height:auto}"""


class Part(NamedTuple):
    """A section of a report: a sentence, a table, a picture; each may be missing."""

    title: str
    text: str = ""
    table: Table | None = None
    picture: str | None = None


def write_report(
    folder: Path, evaluated: Evaluated, *, curves: Mapping[str, Sequence[tuple[float, float]]] = {}
) -> Path:
    """Write `report.html`, `report.md` and the pictures into a folder; the page's path.

    `curves` are lines of a training, (step, loss) points by name. Raises: OSError.
    """
    title = f"{evaluated.model}: {evaluated.objective}"
    return write_pages(folder, title, evaluation_parts(evaluated, curves=curves))


def write_pages(folder: Path, title: str, parts: Sequence[Part]) -> Path:
    """Write a report of any parts, as `write_report` does. Raises: OSError."""
    page, text = folder / "report.html", folder / "report.md"
    page.write_text(_html(title, parts), encoding="utf-8")
    text.write_text(_markdown(title, parts), encoding="utf-8")
    for part in parts:
        if part.picture is not None:
            (folder / _file(part)).write_text(part.picture, encoding="utf-8")
    return page


def evaluation_parts(
    evaluated: Evaluated, *, curves: Mapping[str, Sequence[tuple[float, float]]] = {}
) -> list[Part]:
    """What a report of an evaluation has, in order."""
    tables = evaluated.tables
    parts = [
        Part(
            "Figures",
            f"{evaluated.rows} held-out rows. Intervals hold 95% of bootstrap resamples.",
            _figures(evaluated),
        )
    ]
    if evaluated.compared:
        parts += _comparison(evaluated)
    if curves:
        picture = pictures.curve(curves, across="step", up="loss")
        parts.append(Part("Learning curve", picture=picture))
    if table := tables.get("entities"):
        scores = {row[0]: row[3] for row in table.rows}
        notes = {row[0]: f" of {row[4]}" for row in table.rows}
        picture = pictures.bars(scores, what="F1", notes=notes) if scores else None
        parts.append(Part("Entities", table=table, picture=picture))
    if table := tables.get("classes"):
        parts.append(Part("Classes", "The worst first.", _worst_first(table)))
    if table := tables.get("confusion"):
        parts.append(Part("Confusion", picture=pictures.confusion(table)))
    if (table := tables.get("mistakes")) and table.rows:
        parts.append(Part("Most common mistakes", table=table))
    if table := tables.get("reliability"):
        parts.append(Part("Reliability", table=table, picture=pictures.reliability(table)))
    if (table := tables.get("worst")) and table.rows:
        parts.append(Part("Worst rows", table=table))
    return parts


def search_parts(found: Searched, plots: Mapping[str, str]) -> list[Part]:
    """What a report of a search has: the best settings, all trials, plots by title."""
    settings = Table(columns=("setting", "value"), rows=tuple(found.settings.items()))
    names = sorted({name for trial in found.trials for name in trial.settings})
    trials = Table(
        columns=("trial", "state", found.metric, "steps", *names),
        rows=tuple(
            (one.number, one.state, one.value, one.steps, *map(one.settings.get, names))
            for one in found.trials
        ),
    )
    best = f"{found.best}: {found.metric} {found.value:.4g}"
    return [
        Part("Best settings", best, settings),
        Part("Trials", table=trials),
        *(Part(title, picture=plot) for title, plot in plots.items()),
    ]


# --- parts ----------------------------------------------------------------------------------------


def _figures(evaluated: Evaluated) -> Table:
    rows: list[tuple[Any, ...]] = []
    for name, value in evaluated.metrics.items():
        low, high = evaluated.intervals.get(name, (None, None))
        rows.append((METRICS.get(name, name), value, low, high))
    return Table(columns=("figure", "value", "low", "high"), rows=tuple(rows))


def _comparison(evaluated: Evaluated) -> list[Part]:
    """All models by each figure, and what is clear of the differences."""
    models = {
        evaluated.model: (evaluated.metrics, evaluated.intervals),
        **{one.model: (one.metrics, one.intervals) for one in evaluated.compared},
    }
    names = [name for name in evaluated.metrics if name in METRICS]
    table = Table(
        columns=("model", *(METRICS[name] for name in names)),
        rows=tuple(
            (model, *(figures.get(name) for name in names))
            for model, (figures, _) in models.items()
        ),
    )
    changes = Table(
        columns=("against", "figure", "change", "low", "high", "clear"),
        rows=tuple(
            (
                one.model,
                METRICS.get(name, name),
                change.value,
                change.low,
                change.high,
                "yes" if change.is_clear else "no",
            )
            for one in evaluated.compared
            for name, change in one.changes.items()
        ),
    )
    first = names[0] if names else None
    picture = None
    if first is not None:
        picture = pictures.bars(
            {model: figures[first] for model, (figures, _) in models.items() if first in figures},
            what=METRICS[first],
            intervals={
                model: bounds[first] for model, (_, bounds) in models.items() if first in bounds
            },
        )
    return [
        Part("Models", "On the same rows.", table, picture),
        Part(
            "Changes",
            f"{evaluated.model} less the other model, row by row. Clear: no change lies outside "
            "the interval of 95% of paired resamples.",
            changes,
        ),
    ]


def _worst_first(table: Table) -> Table:
    f1 = table.columns.index("f1")
    return table.model_copy(update={"rows": tuple(sorted(table.rows, key=lambda row: row[f1]))})


# --- pages ----------------------------------------------------------------------------------------


def _html(title: str, parts: Sequence[Part]) -> str:
    body = [f"<h1>{escape(title)}</h1>"]
    for part in parts:
        body.append(f"<h2>{escape(part.title)}</h2>")
        if part.text:
            body.append(f"<p>{escape(part.text)}</p>")
        if part.picture is not None:
            body.append(part.picture)
        if part.table is not None:
            body.append(_html_table(part.table))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    lines = [
        "<tr>" + "".join(_html_cell(cell) for cell in row) + "</tr>"
        for row in table.rows[:_MOST_ROWS]
    ]
    return f"<table><tr>{head}</tr>\n" + "\n".join(lines) + f"</table>{escape(_left_out(table))}"


def _html_cell(cell: Any) -> str:
    is_number = isinstance(cell, int | float) and not isinstance(cell, bool)
    return f"<td{' class=n' if is_number else ''}>{escape(_shown(cell))}</td>"


def _markdown(title: str, parts: Sequence[Part]) -> str:
    lines = [f"# {title}", ""]
    for part in parts:
        lines += [f"## {part.title}", ""]
        if part.text:
            lines += [part.text, ""]
        if part.picture is not None:
            lines += [f"![{part.title}]({_file(part)})", ""]
        if part.table is not None:
            lines += [
                _line(part.table.columns),
                _line(["---"] * len(part.table.columns)),
                *(_line(row) for row in part.table.rows[:_MOST_ROWS]),
                "",
            ]
            if left := _left_out(part.table):
                lines += [left, ""]
    return "\n".join(lines)


def _line(cells: Sequence[Any]) -> str:
    shown = (_shown(cell).replace("\n", " ").replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(shown)} |"


def _left_out(table: Table) -> str:
    more = len(table.rows) - _MOST_ROWS
    return f"and {more} more" if more > 0 else ""


def _shown(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _file(part: Part) -> str:
    return part.title.lower().replace(" ", "-") + ".svg"
