"""All benchmarks, each in a process of its own, and the pages that show what they measured.

`python -m benchmarks` runs all but the long ones and rewrites docs/measured.md (every figure),
docs/performance.md and docs/pictures/ (made by `pages.py` from docs/measured.json). With names it
runs those and only shows them, unless `--write` puts their reports among the others. `--from FILE`
takes a report that was printed earlier with `--json`, and `--pages` only rewrites the pages. The
exit status is 1 when one could not measure; a floor that does not hold is a finding and no failure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import pages
from benchmarks.form import show

FOLDER = Path(__file__).parent
# Minutes of load that measure no speed, peers that take an hour to load a million vectors, and
# models that are trained many times to see how good they get.
LONG = {"continual", "intent", "ner", "soak", "store_filter", "store_search"}
TAKE_SERVER = {"agents", "throughput"}


def names() -> list[str]:
    """Every benchmark here: what runs as a command, and is not this one."""
    mark = '\nif __name__ == "__main__":\n    main'
    return sorted(path.stem for path in FOLDER.glob("[a-z]*.py") if mark in path.read_text())


def run(name: str, options: Sequence[str] = ()) -> dict[str, Any] | None:
    """A benchmark's report; None when it could not measure, which its own output explains."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *options]
    done = subprocess.run(command, cwd=FOLDER.parent, stdout=subprocess.PIPE, text=True)
    if done.returncode or not done.stdout.strip():
        print(f"{name} could not measure: exit status {done.returncode}", file=sys.stderr)
        return None
    return _report(done.stdout)


def _report(printed: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names()))
    parser.add_argument(
        "--server", metavar="PATH", help="a llama-server binary, for those that can"
    )
    parser.add_argument("--write", action="store_true", help="put what is run into the pages")
    parser.add_argument(
        "--from",
        dest="files",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a report printed earlier",
    )
    parser.add_argument("--pages", action="store_true", help="only rewrite the pages")
    options = parser.parse_args()
    chosen: list[str] = options.names
    if unknown := sorted(set(chosen) - set(names())):
        parser.error(f"no benchmark is named {unknown[0]}; there are {', '.join(names())}")
    if options.files or options.pages:
        pages.write([_report(path.read_text()) for path in options.files])
        return 0
    reports: list[dict[str, Any]] = []
    missing: list[str] = []
    for name in chosen or [name for name in names() if name not in LONG]:
        print(f"running {name}", file=sys.stderr)
        takes = options.server and name in TAKE_SERVER
        report = run(name, ["--server", options.server] if takes else [])
        if report is None:
            missing.append(name)
        else:
            reports.append(report)
            show(report)
    if reports and (options.write or not chosen):
        pages.write(reports)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
