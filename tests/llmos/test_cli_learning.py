"""`llmos finetune`, `eval` and `learn`: what is typed, what a person sees, what scripts read."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from llmos.cli import app
from llmos.commands_finetune import finetune_call, kept_job, read_job
from llmos.commands_learn import told as told_of_loop
from llmos.exits import UsageError
from llmos.syscalls.errors import SyscallError
from llmos.training_view import EventLines, TrainingView, told

PRACTICE = """
async def main(os, *, split, count, adapter=None, **options):
    episode = {"task": "t", "kind": "k", "said": "s", "reward": 0.0, "messages": []}
    return {"episodes": [episode] * count, "tokens": 1, "adapter": adapter}
"""
PROGRESS = {
    "event": "progress",
    "step": 3,
    "steps": 10,
    "loss": 1.25,
    "learning_rate": 1e-3,
    "tokens_per_s": 321.0,
    "eta_s": 65.0,
}


@pytest.fixture(autouse=True)
def _folder(scripted_folder: Path) -> None:
    """A working folder with a scripted model and a program to practise."""
    (scripted_folder / "practice.py").write_text(PRACTICE)


def llmos(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


# --- what is asked --------------------------------------------------------------------------------


def test_flags_go_over_words_and_words_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text('data = "rows.jsonl"\nname = "a"\nrank = 4\nepochs = 2.0\n')
    fields = read_job(file, ["rank=16", 'freeze=["embeddings"]'], epochs=3.0, seed=None)
    assert fields == {
        "data": str(tmp_path / "rows.jsonl"),
        "name": "a",
        "rank": 16,
        "freeze": ["embeddings"],
        "epochs": 3.0,
    }
    call = finetune_call(fields)
    assert (call.rank, call.freeze, call.epochs) == (16, ("embeddings",), 3.0)


def test_a_job_file_may_be_json(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text('{"name": "a", "objective": "tag"}')
    assert read_job(file, []) == {"name": "a", "objective": "tag"}


def test_an_unknown_field_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(SyscallError, match=r"learning_rat.*nearest is learning_rate"):
        finetune_call({"name": "a", "data": "x", "learning_rat": 1})


@pytest.mark.parametrize("text", ["name = ", '["a"]'])
def test_a_job_file_that_cannot_be_read_is_a_mistake_of_the_person(
    tmp_path: Path, text: str
) -> None:
    file = tmp_path / ("job.json" if text.startswith("[") else "job.toml")
    file.write_text(text)
    with pytest.raises(UsageError, match="job"):
        read_job(file, [])


def test_a_job_goes_on_with_what_its_folder_says(tmp_path: Path) -> None:
    folder = tmp_path / "jobs" / "a"
    folder.mkdir(parents=True)
    (folder / "identity.json").write_text(
        json.dumps({"base": "smollm2", "rank": 4, "objective": "instruct", "data": ["sha256"]})
    )
    (folder / "job.json").write_text(json.dumps({"data": "/rows.jsonl"}))
    assert finetune_call(kept_job(tmp_path, "a")).model_dump(include={"data", "base", "rank"}) == {
        "data": "/rows.jsonl",
        "base": "smollm2",
        "rank": 4,
    }


def test_a_job_that_left_nothing_cannot_go_on() -> None:
    result = llmos("finetune", "--resume", "--name", "nobody")
    assert result.exit_code == 2
    assert "no unfinished job nobody" in result.output


def test_a_job_needs_a_name() -> None:
    result = llmos("finetune", "rows.jsonl")
    assert result.exit_code == 2
    assert "--name" in result.output


def test_a_model_that_cannot_be_trained_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    result = llmos("finetune", "rows.jsonl", "--name", "a")
    assert result.exit_code == 4
    assert "llmos: not_available" in result.output


# --- what is seen ---------------------------------------------------------------------------------


def test_events_come_in_whole_lines_and_other_text_is_passed_over() -> None:
    lines = EventLines()
    assert list(lines.feed(b'{"event": "que')) == []
    assert list(lines.feed(b'ued"}\nlibrary says\n[1]\n')) == [{"event": "queued"}]


def test_progress_shows_loss_rate_speed_and_time_left() -> None:
    screen = Console(file=io.StringIO(), force_terminal=False, width=200)
    with TrainingView(screen) as view:
        view.show(PROGRESS)
        view.show({"event": "eval", "when": "after", "loss": 0.5, "metrics": {"f1": 0.75}})
    written = screen.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "step 3/10  loss 1.2500  rate 0.001  321 tokens/s" in written
    assert "left" in written
    assert "best: loss 0.5, f1 0.75" in written


def test_a_person_sees_a_bar() -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    with TrainingView(screen) as view:
        view.show(PROGRESS)
    written = screen.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "3/10" in written
    assert "loss 1.2500" in written


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"event": "queued"}, "waiting"),
        ({"event": "resumed", "step": 5, "steps": 9}, "goes on from step 5 of 9"),
        ({"event": "restarted", "signal": 9}, "signal 9"),
        ({"event": "cancelled", "step": 5, "path": "/p"}, "the best so far is in /p"),
        ({"event": "micro_batch", "rows": 2, "step": 1}, "out of memory: 2 rows"),
    ],
)
def test_what_happens_to_a_job_is_said(event: dict[str, object], line: str) -> None:
    assert line in str(told(event))


def test_a_checkpoint_is_not_worth_a_line() -> None:
    assert told({"event": "checkpoint", "step": 5}) is None


def test_a_loop_tells_how_a_round_ended() -> None:
    line = told_of_loop(
        {"event": "judged", "round": 2, "verdict": "discarded", "gain": [0.1, -0.05, 0.2]}
    )
    assert line == "round 2: discarded: it is not better beyond doubt (gain +10%, -5% to +20%)"


# --- a loop ---------------------------------------------------------------------------------------


def test_a_loop_without_anything_to_learn_ends_by_its_rounds(tmp_path: Path) -> None:
    result = llmos(
        *("learn", "practice.py", "--name", "a", "--rounds", "2", "--tasks", "3", "--out", "loop"),
        "--json",
    )
    assert result.exit_code == 0
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == [
        *("started", "measured", "collected", "judged", "collected", "judged", "ended", "outcome")
    ]
    assert events[-1]["why"] == "rounds"
    assert "too little data yet" in (tmp_path / "loop" / "report.md").read_text()


def test_a_wrong_plan_is_told_before_anything_starts() -> None:
    result = llmos("learn", "practice.py", "--set", "round=3")
    assert result.exit_code == 1
    assert "the nearest is rounds" in result.output


# --- the shell ------------------------------------------------------------------------------------


def shell(*lines: str) -> str:
    result = CliRunner().invoke(app, ["shell"], input="\n".join(lines) + "\n")
    return result.output


def test_a_loop_runs_as_a_job_of_the_shell() -> None:
    shown = shell("learn loop practice=practice.py name=a rounds=1 tasks=3", "jobs", "fg")
    assert "[1] running  learn loop" in shown
    assert "the base: 0% (0% to 4%) of the held-out tasks" in shown
    assert "round 1: not trained: too little data yet" in shown


def test_a_training_job_of_the_shell_says_why_it_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    shown = shell("finetune rows.jsonl name=a", "fg")
    assert "no weights to train" in shown


@pytest.mark.parametrize("line", ["finetune name=a", "eval", "learn a b"])
def test_a_word_of_learning_wants_one_path(line: str) -> None:
    assert f"usage: {line.split()[0]} " in shell(line)


# --- a real job on a tiny model -------------------------------------------------------------------


@pytest.fixture
def tiny_jobs(tmp_path: Path, tiny_model_path: Path) -> list[str]:
    """The words of a job on a tiny model."""
    (tmp_path / "llmos.toml").write_text(
        'home = "state"\n[models.tiny]\n'
        f'source = "file:{tiny_model_path}"\ndriver = "torch"\ncontext_tokens = 256\n'
    )
    rows = [{"prompt": f"say {n}", "completion": f"{n}"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "job.toml").write_text(
        'data = "rows.jsonl"\nbase = "tiny"\neval_share = 0.2\nrank = 2\ncheckpoint_steps = 2\n'
    )
    return ["finetune", "--job", "job.toml", "--json"]


def test_a_job_trains_and_scripts_read_its_events(tiny_jobs: list[str]) -> None:
    result = llmos(*tiny_jobs, "--name", "a", "--max-steps", "4")
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.count("progress") == 4
    assert kinds[-2:] == ["done", "trained"]
    assert events[-1]["version"]["name"] == "a"


def test_ctrl_c_keeps_the_best_and_the_job_goes_on(tiny_jobs: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llmos", *tiny_jobs, "--name", "a", "--epochs", "400"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "progress" and json.loads(line)["step"] > 3:
                process.send_signal(signal.SIGINT)
                break
        rest = [json.loads(line) for line in process.stdout]
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert process.returncode == 130, said
    (cancelled,) = (event for event in rest if event["event"] == "cancelled")
    assert Path(cancelled["path"]).is_dir()
    assert "--resume --name a" in said
    result = llmos("finetune", "--resume", "--name", "a", "--set", "max_steps=5")
    assert result.exit_code == 1
    assert "max_steps was None and is 5" in result.output
    assert kept_job(tmp_path / "state", "a")["epochs"] == 400
