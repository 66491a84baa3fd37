from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.training.worker import EvaluateJob, TrainJob, run_evaluation, run_training
from llmos.syscalls.errors import ERROR_CODES, SyscallError
from llmos.syscalls.values import JsonObject

# peft asks transformers for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

COMMAND = (sys.executable, "-P", "-m", "llmos.drivers.training.worker")
ENDLESS = 1_000_000


class Events(list[JsonObject]):
    """Takes the place of standard output."""

    def __call__(self, event: str, **fields: Any) -> None:
        self.append({"event": event, **fields})

    def of(self, event: str) -> list[JsonObject]:
        return [one for one in self if one["event"] == event]


def write_rows(path: Path, count: int = 12) -> None:
    rows = [{"prompt": f"{n}", "completion": "even" if n % 2 == 0 else "odd"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def job(tiny_model_path: Path, tmp_path: Path) -> TrainJob:
    write_rows(tmp_path / "rows.jsonl")
    return TrainJob(
        base=str(tiny_model_path),
        data=str(tmp_path / "rows.jsonl"),
        data_name="rows.jsonl",
        output=str(tmp_path / "adapter"),
        epochs=10,
        learning_rate=1e-2,
        eval_share=0.25,
    )


def job_file(job: TrainJob | EvaluateJob, tmp_path: Path) -> str:
    path = tmp_path / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    return str(path)


# --- training and evaluation ----------------------------------------------------------------------


def test_a_run_tells_its_story_and_lowers_the_held_out_loss(job: TrainJob) -> None:
    emit = Events()
    run_training(job, emit)
    (start,) = emit.of("start")
    assert (start["rows"], start["train_rows"], start["eval_rows"]) == (12, 9, 3)
    assert (start["truncated"], start["skipped"]) == (0, 0)
    assert len(start["data_sha256"]) == 64
    progress = emit.of("progress")
    assert [one["step"] for one in progress] == list(range(1, start["steps"] + 1))
    assert all(one["eta_s"] >= 0 and one["tokens_per_s"] > 0 for one in progress)
    before, after = emit.of("eval")
    assert (before["when"], after["when"]) == ("before", "after")
    assert after["loss"] < before["loss"] - 0.3
    assert emit[-1]["event"] == "done"
    assert emit[-1]["tokens"] == progress[-1]["tokens"]


def test_an_adapter_on_disk_measures_as_it_did_in_training(job: TrainJob, tmp_path: Path) -> None:
    from llmos.drivers.training.instruct import read_rows, split_rows

    trained, of_base, of_adapter = Events(), Events(), Events()
    run_training(job, trained)
    _, held_out = split_rows(read_rows(Path(job.data)), share=job.eval_share, seed=job.seed)
    lines = [{"messages": [json.loads(m.model_dump_json()) for m in r.messages]} for r in held_out]
    data = tmp_path / "held_out.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    run_evaluation(EvaluateJob(base=job.base, data=str(data)), of_base)
    run_evaluation(EvaluateJob(base=job.base, data=str(data), adapter=job.output), of_adapter)
    before, after = trained.of("eval")
    assert of_base.of("eval")[0]["loss"] == pytest.approx(before["loss"], rel=1e-5)
    assert of_adapter.of("eval")[0]["loss"] == pytest.approx(after["loss"], rel=1e-5)
    assert {path.name for path in Path(job.output).iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_checkpoints_come_at_their_steps_and_at_the_end(job: TrainJob) -> None:
    emit = Events()
    run_training(job.model_copy(update={"checkpoint_steps": 2, "max_steps": 5}), emit)
    assert [one["step"] for one in emit.of("checkpoint")] == [2, 4, 5]


def test_rows_that_were_cut_or_left_out_are_counted_and_named(job: TrainJob) -> None:
    with Path(job.data).open("a", encoding="utf-8") as file:
        for prompt, completion in (("long answer", "a" * 200), ("long prompt" * 30, "b")):
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
    emit = Events()
    limits = {"max_length_tokens": 64, "eval_share": 0.0, "max_steps": 1}
    run_training(job.model_copy(update=limits), emit)
    (start,) = emit.of("start")
    assert (start["rows"], start["train_rows"]) == (14, 13)
    assert (start["truncated"], start["truncated_rows"]) == (1, ("rows.jsonl:13",))
    assert (start["skipped"], start["skipped_rows"]) == (1, ("rows.jsonl:14",))
    assert not emit.of("eval")


def test_rows_that_all_lack_room_for_an_answer_are_refused(job: TrainJob) -> None:
    with pytest.raises(SyscallError, match="max_length_tokens") as refused:
        run_training(job.model_copy(update={"max_length_tokens": 16}), Events())
    assert refused.value.code == "invalid"


def test_an_evaluation_refuses_rows_over_its_limit(job: TrainJob) -> None:
    short = EvaluateJob(base=job.base, data=job.data, data_name="rows.jsonl", max_length_tokens=16)
    with pytest.raises(SyscallError, match="max_length_tokens"):
        run_evaluation(short, Events())
    with Path(job.data).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "a", "completion": "b" * 100}) + "\n")
    with pytest.raises(SyscallError, match=r"1 of 13 rows .*rows\.jsonl:13"):
        run_evaluation(short.model_copy(update={"max_length_tokens": 100}), Events())


def test_an_adapter_that_cannot_be_written_is_a_storage_error(
    job: TrainJob, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    blocked = job.model_copy(update={"output": str(tmp_path / "file" / "adapter"), "max_steps": 1})
    with pytest.raises(SyscallError) as failed:
        run_training(blocked, Events())
    assert failed.value.code == "storage"


# --- the process ----------------------------------------------------------------------------------


def test_bad_data_ends_the_worker_with_an_error_event(job: TrainJob, tmp_path: Path) -> None:
    Path(job.data).write_text('{"prompt": "no completion"}\n')
    done = subprocess.run(
        [*COMMAND, job_file(job, tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (event,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert event["event"] == "error"
    assert event["code"] in ERROR_CODES
    assert event["message"] == "rows.jsonl:1: completion: missing"


def test_a_base_that_cannot_be_loaded_is_a_device_error(job: TrainJob, tmp_path: Path) -> None:
    nothing = job.model_copy(update={"base": str(tmp_path / "none.gguf")})
    done = subprocess.run(
        [*COMMAND, job_file(nothing, tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    event = json.loads(done.stdout)
    assert (event["event"], event["code"]) == ("error", "device")
    assert "none.gguf" in event["message"]


def test_sigterm_keeps_the_last_step_and_the_worker_runs_behind_others(
    job: TrainJob, tmp_path: Path
) -> None:
    endless = job.model_copy(update={"epochs": ENDLESS, "checkpoint_steps": ENDLESS})
    command = [*COMMAND, job_file(endless, tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as worker:
        assert worker.stdout is not None
        events: list[JsonObject] = []
        for line in worker.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == "progress":
                break
        mine = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, worker.pid) == min(19, mine + 10)
        assert os.sched_getscheduler(worker.pid) == os.SCHED_BATCH
        worker.send_signal(signal.SIGTERM)
        events += [json.loads(line) for line in worker.stdout]
    assert worker.returncode == 0
    assert [event["event"] for event in events[-2:]] == ["checkpoint", "cancelled"]
    assert events[-1]["step"] == events[-3]["step"]  # the step that was under way, and no other
    assert (Path(job.output) / "adapter_model.safetensors").exists()


def test_the_worker_dies_with_its_parent(job: TrainJob, tmp_path: Path) -> None:
    endless = job.model_copy(update={"epochs": ENDLESS, "checkpoint_steps": ENDLESS})
    start = (
        "import os, subprocess, sys, pathlib; path = pathlib.Path(sys.argv[1]);"
        "path.write_text(path.read_text().replace('\"parent\":null', f'\"parent\":{os.getpid()}'));"
        "subprocess.run(sys.argv[2:])"
    )
    path = job_file(endless, tmp_path)
    command = [sys.executable, "-c", start, path, *COMMAND, path]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        for line in parent.stdout:
            if json.loads(line)["event"] == "progress":
                break
        parent.kill()
        for _ in parent.stdout:  # ends only once the worker, which holds the other end, is gone
            pass
    assert not (Path(job.output) / "adapter_model.safetensors").exists()


def test_a_worker_whose_parent_is_already_gone_does_nothing(job: TrainJob, tmp_path: Path) -> None:
    orphan = job.model_copy(update={"parent": 1})
    done = subprocess.run(
        [*COMMAND, job_file(orphan, tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "process 1, which started this one, has ended" in done.stderr
