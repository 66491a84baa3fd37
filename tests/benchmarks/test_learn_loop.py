"""What the benchmark of the learning loop makes of outcomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.learn_loop import (
    figures,
    rounds_of,
)


def side(right: int) -> dict[str, Any]:
    return {"outcomes": [1.0] * right + [0.0] * (40 - right), "kinds": ["a", "b"] * 20}


def found(before: int, after: int) -> dict[str, Any]:
    sides = {
        f"{how}_{when}": side(right)
        for how in ("free", "held")
        for when, right in (("before", before), ("after", after))
    }
    return {**sides, "rounds": [{"round": 1, "seconds": 2.0, "rows_trained": 7}]}


def test_a_clear_gain_lies_outside_both_intervals() -> None:
    report = figures(found(0, 30))
    assert report["gain"] == 0.75
    assert report["clearance"] > 0
    assert report["gain_low"] > 0
    assert report["kinds_after"] == {"a": "15/20", "b": "15/20"}
    assert report["rows_learned"] == 7


def test_a_gain_within_the_intervals_is_not_clear() -> None:
    report = figures(found(10, 14))
    assert report["gain"] == 0.1
    assert report["clearance"] < 0


def test_rounds_are_read_from_the_loops_record(tmp_path: Path) -> None:
    events = [
        {"event": "started", "plan": {}},
        {"event": "measured", "round": 0, "outcomes": [0, 1], "seconds": 1.0},
        {"event": "collected", "round": 1, "tried": 4, "attempts": 9, "solved": 2, "rows": 2,
         "seconds": 2.0},
        {"event": "trained", "round": 1, "version": "v-1", "rows": 2, "seconds": 3.0},
        {"event": "judged", "round": 1, "verdict": "promoted", "gain": [0.5, 0.1, 0.9]},
    ]  # fmt: skip
    file = tmp_path / "loop.jsonl"
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    first, second = rounds_of(file)
    assert first == {"round": 0, "seconds": 1.0, "dev_success": 0.5}
    assert (second["seconds"], second["version"], second["verdict"]) == (5.0, "v-1", "promoted")
