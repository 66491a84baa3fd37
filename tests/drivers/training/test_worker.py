from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.training.job import EvaluateJob, TrainJob
from llmos.syscalls.errors import ERROR_CODES
from llmos.syscalls.values import JsonObject

COMMAND = (sys.executable, "-P", "-m", "llmos.drivers.training.worker")
ENDLESS = 1_000_000


def job_file(job: TrainJob | EvaluateJob, tmp_path: Path) -> str:
    path = tmp_path / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    return str(path)


def finished(job: TrainJob | EvaluateJob, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, job_file(job, tmp_path)], capture_output=True, text=True, check=False
    )


@contextmanager
def running(job: TrainJob, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*COMMAND, job_file(job, tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as worker:
        yield worker


def until(worker: subprocess.Popen[str], kind: str) -> list[JsonObject]:
    """The events up to the first of a kind."""
    assert worker.stdout is not None
    events: list[JsonObject] = []
    for line in worker.stdout:
        events.append(json.loads(line))
        if events[-1]["event"] == kind:
            break
    return events


def rest(worker: subprocess.Popen[str]) -> list[JsonObject]:
    assert worker.stdout is not None
    return [json.loads(line) for line in worker.stdout]


def weights_of(job: TrainJob) -> bytes:
    return (Path(job.output) / "adapter_model.safetensors").read_bytes()


def endless(job: TrainJob) -> TrainJob:
    return job.model_copy(update={"epochs": ENDLESS, "checkpoint_steps": ENDLESS})


# --- an end before the end ------------------------------------------------------------------------


def test_a_run_killed_twice_ends_with_the_weights_of_an_undisturbed_one(
    job: TrainJob, tmp_path: Path
) -> None:
    settings = {"epochs": 8.0, "checkpoint_steps": 3, "eval_steps": 4, "dropout": 0.1}
    undisturbed = job.model_copy(
        update={**settings, "output": str(tmp_path / "undisturbed" / "version")}
    )
    assert finished(undisturbed, tmp_path).returncode == 0
    killed = job.model_copy(update={**settings, "output": str(tmp_path / "killed" / "version")})
    for _ in range(2):
        with running(killed, tmp_path) as worker:
            until(worker, "checkpoint")
            until(worker, "progress")
            worker.kill()
        assert not Path(killed.output).exists()
    done = finished(killed, tmp_path)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    resumed = next(event for event in events if event["event"] == "resumed")
    assert resumed["step"] >= 6
    assert events[-1]["event"] == "done"
    assert weights_of(killed) == weights_of(undisturbed)


def test_sigterm_keeps_the_last_step_and_the_worker_runs_behind_others(
    job: TrainJob, tmp_path: Path
) -> None:
    with running(endless(job), tmp_path) as worker:
        until(worker, "progress")
        mine = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, worker.pid) == min(19, mine + 10)
        assert os.sched_getscheduler(worker.pid) == os.SCHED_BATCH
        worker.send_signal(signal.SIGTERM)
        events = rest(worker)
    assert worker.returncode == 0
    assert [event["event"] for event in events[-2:]] == ["checkpoint", "cancelled"]
    assert events[-1]["step"] == events[-2]["step"]
    assert weights_of(job)


def test_the_worker_dies_with_the_process_that_started_it(job: TrainJob, tmp_path: Path) -> None:
    start = (
        "import os, subprocess, sys, pathlib; path = pathlib.Path(sys.argv[1]);"
        "own = f'\"owner_pid\":{os.getpid()}';"
        "path.write_text(path.read_text().replace('\"owner_pid\":null', own));"
        "subprocess.run(sys.argv[2:])"
    )
    path = job_file(endless(job), tmp_path)
    command = [sys.executable, "-c", start, path, *COMMAND, path]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        until(parent, "progress")
        parent.kill()
        rest(parent)  # ends only once the worker, which holds the other end, is gone
    assert not Path(job.output).exists()


def test_a_worker_whose_parent_is_already_gone_does_nothing(job: TrainJob, tmp_path: Path) -> None:
    done = finished(job.model_copy(update={"owner_pid": 1}), tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "process 1, which started this one, has ended" in done.stderr


# --- what cannot be done --------------------------------------------------------------------------


def test_bad_data_ends_the_worker_with_an_error_event(job: TrainJob, tmp_path: Path) -> None:
    Path(job.data).write_text('{"prompt": "no completion"}\n')
    done = finished(job, tmp_path)
    assert done.returncode == 1
    (event,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert event["event"] == "error"
    assert event["code"] in ERROR_CODES
    assert event["message"].startswith("rows.jsonl:1: completion: ")


@pytest.mark.parametrize("mode", [TrainJob, EvaluateJob])
def test_a_base_that_cannot_be_loaded_is_a_device_error(
    job: TrainJob, tmp_path: Path, mode: type[Any]
) -> None:
    base = str(tmp_path / "none.gguf")
    missing = {"base": base, "data": job.data, "output": job.output}
    done = finished(mode(**{k: v for k, v in missing.items() if k in mode.model_fields}), tmp_path)
    assert done.returncode == 1
    event = json.loads(done.stdout)
    assert (event["event"], event["code"]) == ("error", "device")
    assert "none.gguf" in event["message"]
