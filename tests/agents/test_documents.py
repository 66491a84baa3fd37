"""Answers from the files of a folder, with their sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos.syscalls.errors import SyscallError

LAMP = "The lamp on the tower is red."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = tmp_path / "files"
    files.mkdir()
    (files / "lamp.md").write_text(f"# Lamps\n\n{LAMP} It turns every ten seconds.")
    (files / "ship.md").write_text("Ships in the harbour are blue and white.")
    return files


def test_the_answer_is_a_sentence_with_the_number_of_its_source(
    run_program: Callable[..., Any], folder: Path
) -> None:
    value, output = run_program(
        "documents", str(folder), "What colour is the lamp?", script=lambda said: LAMP
    )
    (found,) = value["answers"]
    sources = found["sources"]
    path = str(folder / "lamp.md")
    number = next(n for n, source in enumerate(sources, 1) if source["source"] == path)
    assert found["answer"] == f"{LAMP} [{number}]"
    assert sources[number - 1]["place"] == "line 3"
    shown = output.splitlines()
    assert shown[0] == found["answer"]
    assert f"  [{number}] lamp.md, line 3" in shown
    assert value["index"]["files"] == 2


def test_questions_come_from_standard_input_too(
    run_program: Callable[..., Any], folder: Path
) -> None:
    asked = "What colour is the lamp?\n\nWhat colour are ships?\n"
    value, _ = run_program("documents", str(folder), stdin=asked.encode())
    assert [one["question"] for one in value["answers"]] == [
        "What colour is the lamp?",
        "What colour are ships?",
    ]


def test_without_a_fitting_sentence_there_is_no_answer(
    run_program: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "a.py").write_text("lamp = 'red'\n")
    value, output = run_program("documents", str(folder), "What colour is the lamp?")
    assert value["answers"][0]["answer"] is None
    assert output.startswith("No sentence of the files fits")


def test_a_folder_without_text_is_refused(run_program: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "image.png").write_bytes(b"\x89PNG")
    with pytest.raises(SyscallError, match=r"image\.png") as caught:
        run_program("documents", str(tmp_path / "files"), "What?")
    assert caught.value.code == "not_found"
