"""All benchmarks, each in a process of its own; writes docs/measured.md.

`python -m benchmarks` runs them all and rewrites the page; `python -m benchmarks NAME...` runs
those and only shows them. The exit status is 1 when one could not measure; a floor that does not
hold is a finding and no failure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.form import figures_of, floor_cells, show, written

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "measured.md"
NOT_BENCHMARKS = {"__init__", "__main__", "form"}


def names() -> list[str]:
    """Every benchmark here."""
    return sorted({path.stem for path in FOLDER.glob("*.py")} - NOT_BENCHMARKS)


def run(name: str) -> dict[str, Any] | None:
    """A benchmark's report; None when it could not measure, which its own output explains."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json"]
    done = subprocess.run(command, cwd=FOLDER.parent, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        print(f"{name} could not measure: exit status {done.returncode}", file=sys.stderr)
        return None
    report: dict[str, Any] = json.loads(lines[-1])
    return report


def page(reports: Sequence[dict[str, Any]], missing: Sequence[str]) -> str:
    """The reports as Markdown."""
    on = reports[0]["machine"]
    lines = [
        "# Measured figures",
        "",
        f"`make bench` wrote this on {datetime.now(UTC):%Y-%m-%d}: {on['cpu']}, {on['cores']} "
        f"cores, {on['memory_bytes'] / 2**30:.0f} GiB of memory, Python {on['python']}.",
    ]
    for report in reports:
        floors = {floor["name"]: floor for floor in report["floors"]}
        lines += ["", f"## {report['benchmark']}", ""]
        lines += [f"`.venv/bin/python -m benchmarks.{report['benchmark']} --json`", ""]
        lines += ["| figure | value | floor | holds |", "|---|---|---|---|"]
        for key, value in figures_of(report).items():
            limit, verdict = floor_cells(floors.get(key))
            lines.append(f"| `{key}` | {written(value)} | {limit} | {verdict} |")
    lines += [f"\n`{name}` could not measure." for name in missing]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names()))
    chosen: list[str] = parser.parse_args().names
    if unknown := sorted(set(chosen) - set(names())):
        parser.error(f"no benchmark is named {unknown[0]}; there are {', '.join(names())}")
    reports: list[dict[str, Any]] = []
    missing: list[str] = []
    for name in chosen or names():
        print(f"running {name}", file=sys.stderr)
        report = run(name)
        if report is None:
            missing.append(name)
        else:
            reports.append(report)
            show(report)
    if reports and not chosen:
        PAGE.write_text(page(reports, missing))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
