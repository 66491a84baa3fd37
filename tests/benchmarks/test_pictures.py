"""The pictures show both sides of what was compared, with the figures of the report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.panels import PANELS
from benchmarks.pictures import draw

ROOT = Path(__file__).parents[2]
MEASURED: dict[str, Any] = json.loads((ROOT / "docs" / "measured.json").read_text())


def report(name: str) -> dict[str, Any]:
    """The measured report of a benchmark, or one with a figure of its own for every side."""
    keys = [key for bars in PANELS[name] for key in bars.sides.values()]
    made = {key: 1.5 + number for number, key in enumerate(keys)}
    return MEASURED.get(name, {"benchmark": name, "floors": [], **made})


@pytest.mark.parametrize("name", sorted(PANELS))
def test_every_side_names_a_figure_that_its_benchmark_reports(name: str) -> None:
    source = (ROOT / "benchmarks" / f"{name}.py").read_text()
    for bars in PANELS[name]:
        assert len(bars.sides) > 1
        for key in bars.sides.values():
            # A key may be put together from the name of its side and what was measured.
            side, _, rest = key.partition("_")
            assert f'"{key}"' in source or (f'"{side}"' in source and rest in source), key
            assert name not in MEASURED or key in MEASURED[name]


@pytest.mark.parametrize("name", sorted(PANELS))
def test_a_picture_has_a_bar_and_a_figure_for_each_side(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures, path = report(name), tmp_path / "picture.svg"
    assert draw(figures, path)
    drawn = path.read_text()
    for bars in PANELS[name]:
        assert f">{bars.title}<" in drawn
        for side, key in bars.sides.items():
            if figures[key] is not None:
                assert f">{side}<" in drawn
                assert f">{figures[key]:,.4g}<" in drawn


def test_a_side_that_was_not_measured_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.svg"
    assert draw({**report("throughput"), "server_tokens_per_s": None}, path)
    assert ">llama-server<" not in path.read_text()
    assert ">bare loop<" in path.read_text()


def test_what_compares_no_sides_is_drawn_beside_its_floors_and_the_same_again(
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib")
    floor = {"name": "help_ms", "value": 82.1, "op": "<", "floor": 300, "holds": True}
    one, other = tmp_path / "one.svg", tmp_path / "other.svg"
    for path in (one, other):
        assert draw({"benchmark": "startup", "floors": [floor]}, path)
    assert "help_ms &lt; 300" in one.read_text()
    assert one.read_bytes() == other.read_bytes()
    assert not draw({"benchmark": "startup", "floors": []}, tmp_path / "none.svg")
