"""The training worker: its own OS process, `python -m llmos.drivers.training.worker JOB.json`.

Owns one job: trains a version, or measures a loss. Speaks JSON lines on standard output, one event
each:

    start       counts of rows, of what was cut and left out, planned steps, the data's hashes
    resumed     step, steps, tokens, path: training goes on from this step's checkpoint
    eval        when ("before", "during", "after", "test" or "only"), step, loss, rows, metrics
    progress    step, steps, loss, learning_rate, tokens, tokens_per_s, eta_s, padding_share
    micro_batch rows: memory ran out, and this many rows are computed at a time from now on
    checkpoint  step, path: a state that is complete on disk
    cancelled   step, path: SIGTERM stopped training after this step; the best version is kept
    done        seconds, tokens, and for training steps, best_step and path
    error       an error value, code and message

Everything else, libraries' chatter included, goes to standard error. It yields the processor to
inference, and dies with the process that started it. Refuses to know the registry and the kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llmos.drivers.contract import DeviceError
from llmos.drivers.training.course import run_training
from llmos.drivers.training.job import TrainJob, read_job
from llmos.drivers.training.scoring import run_evaluation
from llmos.drivers.training.worker_process import (
    die_with,
    stay_offline,
    take_stdout,
    yield_processor,
)
from llmos.syscalls.errors import SyscallError


def main(arguments: Sequence[str]) -> int:
    """Run the job in a file; the exit status is 0 when an event other than "error" was the last."""
    (path,) = arguments
    job = read_job(Path(path))
    emit = take_stdout()
    if job.owner_pid is not None:
        die_with(job.owner_pid)
    yield_processor(job)
    stay_offline()
    try:
        if isinstance(job, TrainJob):
            run_training(job, emit)
        else:
            run_evaluation(job, emit)
    except SyscallError as error:
        emit("error", **error.value().model_dump())
        return 1
    except DeviceError as error:
        named = SyscallError("device", str(error), device=job.device or "cpu")
        emit("error", **named.value().model_dump())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
