"""Measuring a base, or a version on it, as training measures it: the loss and its kin.

Owns the worker's second mode. Refuses to know what is done with the figures.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from llmos.drivers.rows.reading import read_rows
from llmos.drivers.training.course import SHOWN_ORIGINS, device_of
from llmos.drivers.training.decoder import Decoder, open_for_scoring
from llmos.drivers.training.instruct import InstructTask
from llmos.drivers.training.job import EvaluateJob, TrainJob
from llmos.drivers.training.objectives import Rows, builder
from llmos.drivers.training.prefer import PreferTask
from llmos.drivers.training.pretrain import PretrainTask
from llmos.drivers.training.task import Task
from llmos.drivers.training.worker_process import Emit, uncollected
from llmos.syscalls.errors import SyscallError

ROWS_AT_ONCE = 1000  # losses of rows in one event

_DECODER_TASKS = {"instruct": InstructTask, "pretrain": PretrainTask, "prefer": PreferTask}


class _Scored(NamedTuple):
    model: Any
    task: Task


def run_evaluation(job: EvaluateJob, emit: Emit) -> None:
    """Measure all rows.

    Raises: SyscallError; "invalid" when a row is longer than the limit, for a loss over part of the
    data compares with nothing.
    """
    rows = read_rows(Path(job.data), job.objective, name=job.data_name)
    with uncollected():
        device = device_of(job.device)
        scored = _open(job, device, rows)
    encoded = scored.task.encode(rows)
    if cut := (*encoded.skipped, *encoded.truncated):
        raise SyscallError(
            "invalid",
            f"{len(cut)} of {len(rows)} rows are longer than {job.max_length_tokens} tokens "
            f"({', '.join(cut[:SHOWN_ORIGINS])}); raise max_length_tokens or leave them out",
            field="max_length_tokens",
        )
    started = time.monotonic()
    measured = scored.task.evaluate(scored.model, encoded.items, batch_size=job.batch_size)
    metrics = dict(measured.metrics)
    tokens = int(metrics.pop("tokens", 0)) or sum(len(item.tokens) for item in encoded.items)
    emit(
        "eval",
        when="only",
        loss=metrics.get("loss"),
        rows=len(encoded.items),
        tokens=tokens,
        metrics=metrics,
    )
    losses = [row for row in measured.predictions if isinstance(row, dict) and "loss" in row]
    for first in range(0, len(losses), ROWS_AT_ONCE):
        emit("rows", rows=losses[first : first + ROWS_AT_ONCE])
    emit("done", seconds=time.monotonic() - started, tokens=tokens)


def _open(job: EvaluateJob, device: str, rows: list[Any]) -> _Scored:
    make = _DECODER_TASKS.get(job.objective)
    if make is None:
        return _encoder(job, device, rows)
    decoder = _decoder(job, device)
    return _Scored(decoder.model, make(decoder, max_length_tokens=job.max_length_tokens))


def _decoder(job: EvaluateJob, device: str) -> Decoder:
    version = None if job.version is None else Path(job.version)
    is_full = job.version_kind == "full"
    decoder = open_for_scoring(
        version if version is not None and is_full else Path(job.base),
        None if is_full else version,
        device=device,
        threads=job.threads,
    )
    if job.objective == "prefer" and (version is None or is_full):
        raise SyscallError(
            "invalid",
            "objective: prefer compares a model with itself without its adapter; name an adapter",
            field="objective",
        )
    return decoder


def _encoder(job: EvaluateJob, device: str, rows: list[Any]) -> _Scored:
    """The model as it would be trained on; nothing is."""
    training = TrainJob(
        base=job.base,
        threads=job.threads,
        objective=job.objective,
        method="full",
        parent=job.version,
        parent_kind=job.version_kind,
        max_length_tokens=job.max_length_tokens,
        output="",
    )
    built = builder(training)(training, device, Rows(rows, (), ()))
    return _Scored(built.model, built.task)
