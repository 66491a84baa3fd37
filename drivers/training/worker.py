"""The training worker: its own OS process, `python -m llmos.drivers.training.worker JOB.json`.

Owns one job: trains a LoRA adapter on instruction rows, or measures a loss. Speaks JSON lines on
standard output, one event each:

    start       rows, counts of what was cut and left out, planned steps
    eval        when ("before", "after" or "only"), loss, rows, tokens
    progress    step, steps, loss, learning_rate, tokens, tokens_per_s, eta_s
    checkpoint  step, path: an adapter that is complete on disk
    cancelled   step, path: SIGTERM stopped training after this step, whose adapter is kept
    done        seconds, tokens, and for training steps and path
    error       an error value, code and message

Everything else, libraries' chatter included, goes to standard error. It yields the processor to
inference, and dies with the process that started it. Refuses to know the registry and the kernel.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from llmos.drivers.contract import DeviceError
from llmos.drivers.training import instruct, loop, lora
from llmos.drivers.training.instruct import Chat, EncodedRow, EncodedRows
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonValue, Value

PR_SET_PDEATHSIG = 1  # linux/prctl.h
SHOWN_ORIGINS = 5  # rows named in the start event, of those cut or left out


class Job(Value):
    """What both modes need. `parent` is the process to die with; None is nobody.

    `data_name` is what errors call the data file; without one they count rows.
    """

    base: str
    data: str
    data_name: str | None = None
    batch_size: int = Field(default=4, ge=1)
    max_length_tokens: int = Field(default=512, ge=16)
    threads: int = Field(default=1, ge=1)
    nice: int = Field(default=10, ge=0, le=19)
    scheduling: Literal["batch", "idle"] = "batch"
    device: str = "cpu"
    parent: int | None = None


class TrainJob(Job):
    """Train an adapter into the folder `output`."""

    mode: Literal["train"] = "train"
    output: str
    method: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1, le=256)
    learning_rate: float = Field(default=2e-4, gt=0)
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    eval_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    checkpoint_steps: int = Field(default=50, ge=1)
    seed: int = 0


class EvaluateJob(Job):
    """Measure the base, or the base with the adapter in the folder `adapter`, on all rows."""

    mode: Literal["evaluate"] = "evaluate"
    adapter: str | None = None


AnyJob = Annotated[TrainJob | EvaluateJob, Field(discriminator="mode")]
Emit = Callable[..., None]


def main(arguments: Sequence[str]) -> int:
    """Run the job in a file; the exit status is 0 when an event other than "error" was the last."""
    (path,) = arguments
    job: TrainJob | EvaluateJob = TypeAdapter[Any](AnyJob).validate_json(Path(path).read_bytes())
    emit = take_stdout()
    if job.parent is not None:
        die_with(job.parent)
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
        emit("error", **SyscallError("device", str(error), device=job.device).value().model_dump())
        return 1
    return 0


# --- the two modes --------------------------------------------------------------------------------


def run_training(job: TrainJob, emit: Emit) -> None:
    """Train, save and measure. Raises: SyscallError, DeviceError."""
    rows = instruct.read_rows(Path(job.data), name=job.data_name)
    chosen, held_out = instruct.split_rows(rows, share=job.eval_share, seed=job.seed)
    model, chat = lora.load_base(Path(job.base), device=job.device, threads=job.threads)
    train_rows = _encode(chosen, chat, job)
    eval_rows = _encode(held_out, chat, job) if held_out else EncodedRows((), (), ())
    steps = loop.planned_steps(
        len(train_rows.rows),
        batch_size=job.batch_size,
        epochs=job.epochs,
        max_steps=job.max_steps,
    )
    model = lora.add_adapter(model, rank=job.rank, seed=job.seed)
    truncated = train_rows.truncated + eval_rows.truncated
    skipped = train_rows.skipped + eval_rows.skipped
    emit(
        "start",
        rows=len(rows),
        train_rows=len(train_rows.rows),
        eval_rows=len(eval_rows.rows),
        truncated=len(truncated),
        truncated_rows=truncated[:SHOWN_ORIGINS],
        skipped=len(skipped),
        skipped_rows=skipped[:SHOWN_ORIGINS],
        steps=steps,
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        data_sha256=sha256(Path(job.data).read_bytes()).hexdigest(),
    )
    if eval_rows.rows:
        _emit_eval(emit, "before", model, eval_rows.rows, job)
    started = time.monotonic()
    tokens = _train(job, emit, model, train_rows.rows, steps)
    if tokens is None:
        return
    seconds = time.monotonic() - started
    if eval_rows.rows:
        _emit_eval(emit, "after", model, eval_rows.rows, job)
    emit("done", seconds=seconds, tokens=tokens, steps=steps, path=job.output)


def _train(
    job: TrainJob, emit: Emit, model: Any, rows: Sequence[EncodedRow], steps: int
) -> int | None:
    """The tokens trained on, the adapter saved; None when SIGTERM cut the run short."""
    output = Path(job.output)
    total = 0
    pace = Pace()
    run = loop.train(
        model,
        rows,
        steps=steps,
        batch_size=job.batch_size,
        learning_rate=job.learning_rate,
        seed=job.seed,
    )
    with terminate_requested() as is_requested:
        for step in run:
            total += step.tokens
            pace.tick(step.tokens)
            emit(
                "progress",
                step=step.number,
                steps=steps,
                loss=step.loss,
                learning_rate=step.learning_rate,
                tokens=total,
                tokens_per_s=round(pace.tokens_per_s, 1),
                eta_s=round(pace.step_s * (steps - step.number), 1),
            )
            is_over = step.number == steps or is_requested()
            if is_over or step.number % job.checkpoint_steps == 0:
                lora.save_adapter(model, output)
                emit("checkpoint", step=step.number, path=job.output)
            if step.number < steps and is_over:
                emit("cancelled", step=step.number, path=job.output)
                return None
    return total


def run_evaluation(job: EvaluateJob, emit: Emit) -> None:
    """Measure the loss on all rows.

    Raises: SyscallError; "invalid" when a row is longer than the limit, for a loss over part of the
    data compares with nothing.
    """
    rows = instruct.read_rows(Path(job.data), name=job.data_name)
    model, chat = lora.load_base(Path(job.base), device=job.device, threads=job.threads)
    encoded = _encode(rows, chat, job)
    if cut := (*encoded.skipped, *encoded.truncated):
        raise SyscallError(
            "invalid",
            f"{len(cut)} of {len(rows)} rows are longer than {job.max_length_tokens} tokens "
            f"({', '.join(cut[:SHOWN_ORIGINS])}); raise max_length_tokens or leave them out",
            field="max_length_tokens",
        )
    if job.adapter is not None:
        model = lora.load_adapter(model, Path(job.adapter))
    started = time.monotonic()
    score = _emit_eval(emit, "only", model, encoded.rows, job)
    emit("done", seconds=time.monotonic() - started, tokens=score.tokens)


def _encode(rows: Sequence[instruct.Row], chat: Chat, job: Job) -> EncodedRows:
    encoded = instruct.encode_rows(rows, chat, max_length_tokens=job.max_length_tokens)
    if not encoded.rows:
        raise SyscallError(
            "invalid",
            f"the prompts of all {len(rows)} rows fill max_length_tokens "
            f"({job.max_length_tokens}) and leave no room for an answer; raise it",
            field="max_length_tokens",
        )
    return encoded


def _emit_eval(
    emit: Emit, when: str, model: Any, rows: Sequence[EncodedRow], job: Job
) -> loop.Score:
    score = loop.evaluate(model, rows, batch_size=job.batch_size)
    emit("eval", when=when, **score._asdict())
    return score


# --- the process ----------------------------------------------------------------------------------


def take_stdout() -> Emit:
    """Claim standard output for events; what libraries print goes to standard error instead."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(event: str, **fields: JsonValue) -> None:
        print(json.dumps({"event": event, **fields}, allow_nan=False), file=events, flush=True)

    return emit


def die_with(parent: int) -> None:
    """Have the system kill this process when its parent, `parent`, ends (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent:  # it ended before the line above
        raise SystemExit(f"process {parent}, which started this one, has ended")


def yield_processor(job: Job) -> None:
    """Take the processor only after inference, and few cores; before torch is imported."""
    os.nice(job.nice)
    policy = os.SCHED_IDLE if job.scheduling == "idle" else os.SCHED_BATCH
    try:
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except PermissionError as problem:  # some sandboxes refuse it; the nice value still holds
        print(f"the scheduling policy stays as it is: {problem}", file=sys.stderr)
    os.environ["OMP_NUM_THREADS"] = str(job.threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that wait by spinning rob inference
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def stay_offline() -> None:
    """Keep libraries from the network and from drawing progress bars; before they are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


@contextmanager
def terminate_requested() -> Generator[Callable[[], bool]]:
    """Within it SIGTERM is noted instead of obeyed; gives a function that tells whether one came.

    Outside, SIGTERM ends the process at once: there is nothing to keep, or it is already kept.
    """
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGTERM, before)


class Pace:
    """How fast training goes, over the most recent steps: a pause soon stops counting."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._seconds: float | None = None
        self._tokens = 0.0

    def tick(self, tokens: int) -> None:
        """Count a step that ends now."""
        now = time.monotonic()
        passed, self._last = now - self._last, now
        keep = 0.0 if self._seconds is None else 0.9
        self._seconds = keep * (self._seconds or 0.0) + (1 - keep) * passed
        self._tokens = keep * self._tokens + (1 - keep) * tokens

    @property
    def step_s(self) -> float:
        return self._seconds or 0.0

    @property
    def tokens_per_s(self) -> float:
        return self._tokens / self._seconds if self._seconds else 0.0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
