"""Map and reduce over files and standard input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos.syscalls.errors import SyscallError

Run = Callable[..., Any]

SUMMARY = "The lamp of the tower is red and turns."


def test_a_short_text_is_summed_up_at_once(run_program: Run) -> None:
    value, output = run_program(
        "summarise", stdin=b"The lamp is red. It turns.", script=lambda said: SUMMARY
    )
    assert value == {
        "summary": SUMMARY,
        "files": [{"path": "-", "bytes": 26, "is_lossy": False}],
        "chunks": 1,
    }
    assert output == SUMMARY + "\n"


def test_each_chunk_of_a_long_text_is_summed_up_by_a_child(
    run_program: Run, tmp_path: Path
) -> None:
    asked: set[str] = set()

    def script(said: str) -> str:
        asked.add(said)
        return "It is about part " + said.split()[0] + " and more."

    paths: list[str] = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.txt"
        path.write_text("\n\n".join(f"{name}{n} " + "lamp " * 30 for n in range(4)))
        paths.append(str(path))
    value, _ = run_program("summarise", *paths, script=script)
    assert [file["path"] for file in value["files"]] == paths
    assert value["chunks"] == 8
    assert {said.split()[0] for said in asked} >= {
        f"{name}{n}" for name in ("one", "two") for n in range(4)
    }


def test_bytes_that_are_not_utf8_are_told(run_program: Run, tmp_path: Path) -> None:
    path = tmp_path / "odd.txt"
    path.write_bytes(b"The caf\xe9 is open.")
    seen: list[str] = []

    def script(said: str) -> str:
        seen.append(said)
        return SUMMARY

    value, _ = run_program("summarise", str(path), script=script)
    assert value["files"][0]["is_lossy"]
    assert "caf\ufffd" in seen[0]


def test_the_summary_keeps_to_its_words(run_program: Run) -> None:
    value, _ = run_program(
        "summarise",
        words=10,
        stdin=b"Lamps.",
        script=lambda said: "Word " + "word " * 30 + "end.",
    )
    assert len(value["summary"].split()) <= 10


@pytest.mark.parametrize("data", [b"", b"\n\n", b"```\ncode\n```\n"])
def test_without_text_there_is_nothing_to_sum_up(run_program: Run, data: bytes) -> None:
    with pytest.raises(SyscallError, match="no text") as caught:
        run_program("summarise", stdin=data)
    assert caught.value.code == "invalid"
