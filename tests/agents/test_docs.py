"""The page on agents and tools: its programs and tools work, its lists are whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmos.agents.programs import PROGRAMS
from llmos.agents.tools import TOOLS
from llmos.kernel.sandbox import DEFAULT_LIMITS
from llmos.syscalls.tool import tool

PAGE = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()
# Parts of other programs, which nobody starts by hand.
INNER = {
    "best-of-n-writer",
    "debater",
    "demo-reporter",
    "research-worker",
    "research-writer",
    "summarise-chunk",
}


def defined() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    for snippet in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(snippet, names)
    return names


def test_the_program_of_the_page_runs(run_program: Callable[..., Any]) -> None:
    value, _ = run_program(
        defined()["reviewer"],
        "The lamp is red.",
        angles=["style", "length"],
        script=lambda said: f"Good {said.split()[-1]}",
    )
    assert value == {"style": "Good style?", "length": "Good length?"}


def test_the_tools_of_the_page_are_tools() -> None:
    names = defined()
    dice = tool(names["dice"])
    assert dice.spec.parameters["properties"]["sides"]["maximum"] == 100
    assert tool(names["recall"]).wants_handle


def test_every_program_and_tool_is_on_the_page() -> None:
    words = set(re.findall(r"`([a-z_-]+)[ `]", PAGE))
    assert set(PROGRAMS) - INNER <= words
    assert {one.spec.name for one in TOOLS} | {"python"} <= words


def test_the_limits_on_the_page_are_the_limits() -> None:
    page = " ".join(PAGE.split())
    assert f"processor time ({DEFAULT_LIMITS.cpu_s} s)" in page
    assert (
        f"time ({DEFAULT_LIMITS.wall_s:g} s), memory ({DEFAULT_LIMITS.memory_bytes >> 20} MiB)"
        in page
    )
    assert (
        f"file ({DEFAULT_LIMITS.file_bytes >> 20} MiB), open files ({DEFAULT_LIMITS.open_files})"
        in page
    )
    assert f"output ({DEFAULT_LIMITS.output_bytes >> 10} KiB" in page
