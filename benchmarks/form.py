"""The form that every benchmark has.

`python -m benchmarks.NAME` shows a table; with `--json` the last line on standard output is one
JSON object: the benchmark's keys, `machine`, and `floors`, each with the value that was measured
and whether it holds. The exit status is 0 when it could measure, whatever it found.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}


class Floor(NamedTuple):
    """What a key must reach: its value compared with `floor`. None was not measured."""

    name: str
    op: Literal["<", "<=", ">", ">=", "=="]
    floor: float

    def judge(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """This floor with the value that was measured, and whether it holds."""
        value: float | None = figures[self.name]
        holds = None if value is None else _COMPARE[self.op](value, self.floor)
        return {
            "name": self.name,
            "value": value,
            "op": self.op,
            "floor": self.floor,
            "holds": holds,
        }


def main(name: str, measure: Callable[[], Mapping[str, Any]], floors: Sequence[Floor] = ()) -> None:
    """Run one benchmark as a command. What `measure` raises ends the process with a traceback."""
    main_with(argparse.ArgumentParser(), name, lambda _: measure(), floors)


def main_with(
    parser: argparse.ArgumentParser,
    name: str,
    measure: Callable[[argparse.Namespace], Mapping[str, Any]],
    floors: Sequence[Floor] = (),
) -> None:
    """As `main`, for a benchmark that takes options: `parser` has them, `measure` is given them."""
    parser.prog = f"python -m benchmarks.{name}"
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    # What a benchmark has started (servers, kernels) ends with it, also under `timeout`.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    busy = os.getloadavg()[0]
    figures = measure(options)
    report = {
        "benchmark": name,
        **figures,
        "machine": {**machine(), "load_before": round(busy, 2)},
        "floors": [floor.judge(figures) for floor in floors],
    }
    if options.json:
        print(json.dumps(report, allow_nan=False))
    else:
        show(report)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import psutil

    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def figures_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a report that are the benchmark's own, without series: those are for pictures."""
    return {
        key: value
        for key, value in report.items()
        if key not in ("benchmark", "machine", "floors") and not isinstance(value, dict | list)
    }


def show(report: Mapping[str, Any]) -> None:
    """Print a report as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "value", "floor", "holds", title=report["benchmark"])
    floors = {floor["name"]: floor for floor in report["floors"]}
    for key, value in figures_of(report).items():
        limit, verdict = floor_cells(floors.get(key))
        table.add_row(key, written(value), limit, verdict)
    console = Console()
    console.print(table)
    on = report["machine"]
    console.print(f"{on['cpu']}, {on['cores']} cores, load {on['load_before']} before the start")


def floor_cells(floor: Mapping[str, Any] | None) -> tuple[str, str]:
    """How a table shows a floor and whether it holds."""
    if floor is None:
        return "", ""
    verdicts = {None: "not measured", True: "yes", False: "no"}
    return f"{floor['op']} {floor['floor']}", verdicts[floor["holds"]]


def written(value: Any) -> str:
    """A figure as a table shows it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
