"""Words as a program's arguments."""

from __future__ import annotations

import json
import os as posix
import sys
from pathlib import Path

import pytest

from llmos.arguments import load_program, parse_arguments, usage
from llmos.exits import UsageError


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").touch()
    (tmp_path / "word").touch()


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("3", 3),
        ("-1.5", -1.5),
        ("true", True),
        ("null", None),
        ('"3"', "3"),
        ('{"a": [1]}', {"a": [1]}),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("007", "007"),
        ("", ""),
        ("text", "text"),
        ("What is x=2?", "What is x=2?"),
        ("a/b.txt", "a/b.txt"),
        ("word", "word"),
        ("x" * 5000 + ".md", "x" * 5000 + ".md"),
    ],
)
def test_a_word_is_json_or_text(word: str, value: object) -> None:
    assert parse_arguments([word]).args == (value,)


@pytest.mark.parametrize("word", ["docs", "docs/", "README.md", "./README.md", ".", "docs/.."])
def test_a_word_that_names_what_is_there_becomes_an_absolute_path(word: str) -> None:
    assert parse_arguments([word]).args == (str(Path(word).resolve()),)


def test_name_equals_word_is_a_keyword_and_json_text_never_is() -> None:
    arguments = parse_arguments(["a=1", "b=two", "folder=docs", '"c=3"', "d=x=y", "e="])
    assert arguments.args == ("c=3",)
    assert arguments.kwargs == {
        "a": 1,
        "b": "two",
        "folder": str(Path("docs").resolve()),
        "d": "x=y",
        "e": "",
    }


def test_names_of_programs_pass_and_files_are_loaded() -> None:
    Path("agent.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Seen:\n"
        "    text: str\n"
        "async def main(os): return 1\n"
        "async def other(os): return 2\n"
    )
    assert load_program("chat") == "chat"
    assert load_program("package.module:main") == "package.module:main"
    for name, function in (("agent.py", "main"), ("agent.py:other", "other")):
        loaded = load_program(name)
        assert not isinstance(loaded, str)
        assert loaded.__name__ == function
    assert load_program("agent.py") is load_program("./agent.py")


def test_a_file_that_has_changed_is_executed_again() -> None:
    path = Path("changing.py")
    path.write_text("async def main(os): return 1\n")
    first = load_program("changing.py")
    path.write_text("async def main(os): return 22\n")
    posix.utime(path, ns=(1, 1))
    assert load_program("changing.py") is not first


def test_a_file_named_like_a_library_leaves_the_library_alone() -> None:
    Path("json.py").write_text("async def main(os): return 1\n")
    load_program("json.py")
    posix.utime("json.py", ns=(1, 1))
    load_program("json.py")
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none.py", "there is no such file"),
        ("README.py", "there is no such file"),
        ("raises.py", "the file does not run: RuntimeError: on purpose"),
        ("plain.py", "has no async function 'main'"),
    ],
)
def test_a_file_that_holds_no_program_is_named(name: str, says: str) -> None:
    Path("raises.py").write_text("raise RuntimeError('on purpose')\n")
    Path("plain.py").write_text("def main(os): return 1\n")
    with pytest.raises(UsageError, match=says):
        load_program(name)


def test_the_usage_of_a_program_shows_its_parameters() -> None:
    async def seek(os: object, folder: str, *words: str, k: int, model: str = "m") -> None: ...

    assert usage("seek", seek) == "seek FOLDER [WORDS...] k=... [model=...]"
