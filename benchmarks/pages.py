"""The pages of measured figures: docs/measured.md, docs/performance.md and docs/pictures/.

All three are made from docs/measured.json, which holds the newest report of each benchmark, so that
one can be measured again without the others. A report says on what machine it was made, and when.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import pictures
from benchmarks.form import figures_of, floor_cells, written

FOLDER = Path(__file__).parent
DOCS = FOLDER.parent / "docs"
# The order of the page: what agents get first, then what it is made of.
_FIRST = ("agents", "throughput", "interactive", "shared_prefix", "fork", "return_from_tool")

Report = Mapping[str, Any]


def write(reports: Sequence[Report], docs: Path = DOCS) -> None:
    """Put reports in the place of older ones, and rewrite the pages and the pictures."""
    store = docs / "measured.json"
    kept: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    kept |= {report["benchmark"]: {**report, "measured_on": today} for report in reports}
    store.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    drawn = _draw(list(kept.values()), docs / "pictures")
    ordered = sorted(kept.values(), key=_place)
    (docs / "measured.md").write_text(measured(ordered))
    (docs / "performance.md").write_text(performance(ordered, drawn))


def measured(reports: Sequence[Report]) -> str:
    """Every figure, as Markdown."""
    lines = ["# Measured figures", "", "Written by `make bench`; [performance.md](performance.md) "]
    lines[-1] += "has the pictures."
    for report in reports:
        floors = {floor["name"]: floor for floor in report["floors"]}
        lines += ["", f"## {report['benchmark']}", "", _made(report), ""]
        lines += ["| figure | value | floor | holds |", "|---|---|---|---|"]
        for key, value in _own(report).items():
            limit, verdict = floor_cells(floors.get(key))
            lines.append(f"| `{key}` | {_shown(value)} | {limit} | {verdict} |")
    return "\n".join(lines) + "\n"


def performance(reports: Sequence[Report], drawn: set[str]) -> str:
    """What is compared, a picture, and what must hold, for each benchmark."""
    lines = [
        "# Performance",
        "",
        "Each section is one script that ran both sides of a comparison on one machine, one after "
        "the other, and took medians. Your figures will differ; the ratios less so. "
        "[measured.md](measured.md) has every figure.",
    ]
    for report in reports:
        name = report["benchmark"]
        title, _, rest = _says(name).partition("\n\n")
        lines += ["", f"## {name}", "", _plain(title), ""]
        if name in drawn:
            lines += [f"![{name}](pictures/{name}.svg)", ""]
        for floor in report["floors"]:
            if floor["value"] is not None:
                limit, verdict = floor_cells(floor)
                lines.append(
                    f"- `{floor['name']}`: **{_shown(floor['value'])}** ({limit}: {verdict})"
                )
        if rest:
            lines += ["", *(_plain(paragraph) + "\n" for paragraph in rest.split("\n\n"))]
        lines += [_made(report)]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _draw(reports: Sequence[Report], folder: Path) -> set[str]:
    """The benchmarks that have a picture now; without matplotlib those that had one."""
    folder.mkdir(exist_ok=True)
    if importlib.util.find_spec("matplotlib") is None:
        print("no matplotlib here: the pictures stay as they are", file=sys.stderr)
        return {path.stem for path in folder.glob("*.svg")}
    paths = {report["benchmark"]: folder / f"{report['benchmark']}.svg" for report in reports}
    return {
        report["benchmark"]
        for report in reports
        if pictures.draw(report, paths[report["benchmark"]])
    }


def _place(report: Report) -> tuple[int, str]:
    name = report["benchmark"]
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


def _made(report: Report) -> str:
    on = report["machine"]
    return (
        f"`.venv/bin/python -m benchmarks.{report['benchmark']} --json`, {report['measured_on']}: "
        f"{on['cpu']}, {on['cores']} cores, {on['memory_bytes'] / 2**30:.0f} GiB of memory, "
        f"Python {on['python']}, load {on['load_before']} before the start."
    )


def _own(report: Report) -> dict[str, Any]:
    return {key: value for key, value in figures_of(report).items() if key != "measured_on"}


def _says(name: str) -> str:
    """What a benchmark says of itself: its module's docstring."""
    path = FOLDER / f"{name}.py"
    return ast.get_docstring(ast.parse(path.read_text())) or "" if path.exists() else ""


def _plain(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _shown(value: Any) -> str:
    return "not measured" if value is None else written(value)
