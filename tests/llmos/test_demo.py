"""The demo's face: what it shows while agents run, and what it leaves behind."""

from __future__ import annotations

import asyncio
import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmos import booting, exits
from llmos.agents.handle import OS
from llmos.config import Config, ModelConfig
from llmos.demo import run_demo
from llmos.demo_folders import own_docs
from llmos.syscalls.errors import SyscallError
from llmos.terminal import Terminal


async def worker(os: OS, number: int) -> str:
    return (await os.generate(f"Say something about {number}", max_tokens=6)).text


async def answer(os: OS, folder: str, question: str = "What is here?") -> dict[str, Any]:
    await os.print("reading", folder)
    kids = [await os.spawn(worker, number) for number in range(8)]
    texts = await os.results(kids)
    files = await os.list(folder, is_recursive=True)
    return {
        "question": question,
        "answer": f"[bold]{texts[0]}",
        "sources": [{"path": file.path, "line": 1} for file in files if not file.is_folder],
    }


async def fail(os: OS, folder: str) -> None:
    raise SyscallError("failed", "the files say nothing")


async def interrupted(os: OS, folder: str) -> None:
    asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
    await os.receive()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        home=tmp_path / "home",
        cache=tmp_path / "cache",
        models={"scripted": ModelConfig(source="scripted", driver="scripted")},
    )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.md").write_text("# A\n")
    return tmp_path / "files"


class Screen:
    def __init__(self, *, is_terminal: bool = False) -> None:
        self._raw = io.BytesIO()
        file = io.TextIOWrapper(self._raw, encoding="utf-8", write_through=True)
        console = Console(
            file=file, width=150, height=40, force_terminal=is_terminal, highlight=False
        )
        self.terminal = Terminal(input_fd=None, screen=console, errors=console)

    @property
    def text(self) -> str:
        return self._raw.getvalue().decode()


def use(monkeypatch: pytest.MonkeyPatch, program: Any) -> None:
    monkeypatch.setitem(booting.PROGRAMS, "demo", program)


def test_the_end_shows_answer_sources_accounting_and_savings(
    monkeypatch: pytest.MonkeyPatch, config: Config, files: Path, tmp_path: Path
) -> None:
    use(monkeypatch, answer)
    screen = Screen()
    status = run_demo(config, files, out=tmp_path / "out", terminal=screen.terminal)
    assert status == exits.OK
    for shown in (
        f"reading {files}",
        "What is here?",
        "[bold]",
        f"1. {files}/a.md  1",
        "demo",
        ":worker",
        "prompt tokens",
        str(tmp_path / "out" / "trace.json"),
        str(tmp_path / "out" / "report.html"),
    ):
        assert shown in screen.text


def test_trace_and_report_are_left_in_the_folder(
    monkeypatch: pytest.MonkeyPatch, config: Config, files: Path, tmp_path: Path
) -> None:
    use(monkeypatch, answer)
    run_demo(config, files, out=tmp_path / "out", terminal=Screen().terminal)
    trace = json.loads((tmp_path / "out" / "trace.json").read_text())
    assert sum(event["name"] == "spawn" for event in trace["traceEvents"]) == 9
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What is here?" in page
    assert page.count('class="lane"') == 9


def test_json_is_one_object_with_figures_and_paths(
    monkeypatch: pytest.MonkeyPatch, config: Config, files: Path, tmp_path: Path
) -> None:
    use(monkeypatch, answer)
    screen = Screen()
    out = tmp_path / "out"
    run_demo(config, files, question="Why?", out=out, as_json=True, terminal=screen.terminal)
    outcome = json.loads(screen.text)
    assert outcome["value"]["question"] == "Why?"
    assert outcome["programs"]["demo"]["syscalls"] > 0
    assert outcome["sharing"]["prompt_tokens"] > outcome["sharing"]["cached_tokens"]
    assert Path(outcome["report"]).is_file()


def test_on_a_terminal_the_processes_are_drawn_while_they_run(
    monkeypatch: pytest.MonkeyPatch, config: Config, files: Path, tmp_path: Path
) -> None:
    use(monkeypatch, answer)
    screen = Screen(is_terminal=True)
    run_demo(config, files, out=tmp_path / "out", terminal=screen.terminal)
    assert "policy priority" in screen.text


def test_a_demo_that_fails_says_why_and_still_leaves_its_report(
    monkeypatch: pytest.MonkeyPatch, config: Config, files: Path, tmp_path: Path
) -> None:
    use(monkeypatch, fail)
    screen = Screen()
    status = run_demo(config, files, out=tmp_path / "out", terminal=screen.terminal)
    assert status == exits.FAILED
    assert "failed: the files say nothing" in screen.text
    assert "the files say nothing" in (tmp_path / "out" / "report.html").read_text()


def test_ctrl_c_ends_the_demo(
    monkeypatch: pytest.MonkeyPatch, config: Config, files: Path, tmp_path: Path
) -> None:
    use(monkeypatch, interrupted)
    status = run_demo(config, files, out=tmp_path / "out", terminal=Screen().terminal)
    assert status == exits.INTERRUPTED


def test_a_folder_that_is_not_there_is_refused_before_anything_starts(
    config: Config, tmp_path: Path
) -> None:
    with pytest.raises(exits.UsageError, match="is not a folder"):
        run_demo(config, tmp_path / "none", out=tmp_path / "out", terminal=Screen().terminal)


def test_where_the_folder_cannot_be_made_the_results_go_home(
    monkeypatch: pytest.MonkeyPatch, config: Config, files: Path
) -> None:
    use(monkeypatch, answer)
    out = files / "a.md" / "out"
    run_demo(config, files, out=out, terminal=Screen().terminal)
    assert (config.home / "demo" / "report.html").is_file()


def test_by_default_the_projects_own_text_is_read(tmp_path: Path) -> None:
    folder = own_docs(tmp_path / "staged")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")}
    assert "docs/shell.md" in found


def test_without_docs_the_packages_own_code_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "site" / "llmos"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""Text."""\n')
    monkeypatch.setattr("llmos.__file__", str(package / "__init__.py"))
    folder = own_docs(tmp_path / "staged")
    assert [path.name for path in folder.rglob("*.*")] == ["__init__.py"]
