"""The course of a training job: from rows to a version's files, through checkpoints and scores.

Owns when weights are scored, which are best, when a run is over, and that a job which stopped
anywhere goes on from its last checkpoint as if it had not. Refuses to know the arithmetic
(`loop.py`), the objective (`task.py`) and who is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmos.drivers.training.checkpoints import Checkpoints, write_folder
from llmos.drivers.training.gathering import data_hashes, gather
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.loop import Run, Step, is_out_of_memory
from llmos.drivers.training.objectives import builder
from llmos.drivers.training.pace import Pace
from llmos.drivers.training.task import Built, Encoded, Item, Measured
from llmos.drivers.training.worker_process import Emit, terminate_requested, uncollected
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonObject

SHOWN_ORIGINS = 5  # rows named in the start event, of those cut or left out
# Metrics of which less is better; of all others more is.
LOWER_IS_BETTER = ("loss", "perplexity", "calibration_error", "brier")


def run_training(job: TrainJob, emit: Emit) -> None:
    """Train, score and save. Raises: SyscallError, DeviceError."""
    with uncollected():
        device = device_of(job.device)
    rows = gather(job)
    for field in ("metric", "patience"):
        if getattr(job, field) is not None and not rows.dev:
            raise SyscallError(
                "invalid",
                f"{field}: it is about held-out rows, and there are none; give eval_data, or an "
                "eval_share over 0",
                field=field,
            )
    with uncollected():
        built = builder(job)(job, device, rows)
    train, dev, test = (
        built.task.encode(side) if side else Encoded(())
        for side in (rows.train, rows.dev, rows.test)
    )
    if not train.items:
        raise SyscallError(
            "invalid",
            f"all {len(rows.train)} rows fill max_length_tokens ({job.max_length_tokens}) and "
            "leave nothing to learn; raise it",
            field="max_length_tokens",
        )
    run = Run(built, train.items, job, device=device)
    truncated = train.truncated + dev.truncated + test.truncated
    skipped = train.skipped + dev.skipped + test.skipped
    hashes = data_hashes(job)
    emit(
        "start",
        rows=len(rows.train) + len(rows.dev) + len(rows.test),
        train_rows=len(train.items),
        eval_rows=len(dev.items),
        test_rows=len(test.items),
        truncated=len(truncated),
        truncated_rows=truncated[:SHOWN_ORIGINS],
        skipped=len(skipped),
        skipped_rows=skipped[:SHOWN_ORIGINS],
        redacted=dict(rows.redacted),
        dropped=dict(rows.dropped),
        steps=run.steps,
        trainable_parameters=sum(p.numel() for p in run.weights.values()),
        data_sha256=hashes.get(job.data),
        data_hashes=hashes,
        kind=built.kind,
        device=device,
    )
    Course(job, emit, built, run, dev=dev.items, test=test.items).run()


def device_of(asked: str | None) -> str:
    """The device to train on: the one asked for, else CUDA where there is one.

    Raises: SyscallError("not_available").
    """
    import torch

    is_there = torch.cuda.is_available()
    if asked is None:
        return "cuda" if is_there else "cpu"
    if asked != "cpu" and not (asked.partition(":")[0] == "cuda" and is_there):
        raise SyscallError(
            "not_available",
            f"device: torch finds no {asked} here; available: cpu{', cuda' if is_there else ''}",
            field="device",
        )
    return asked


@dataclass(slots=True)
class _Notes:
    """What a checkpoint keeps beside the tensors."""

    tokens: int = 0
    seconds: float = 0.0
    before: dict[str, float] | None = None
    best_step: int | None = None
    best: dict[str, float] | None = None
    since_best: int = 0  # scores without a better one
    is_over: bool = False  # patience is


class Course:
    """One job on its way."""

    def __init__(
        self,
        job: TrainJob,
        emit: Emit,
        built: Built,
        run: Run,
        *,
        dev: tuple[Item, ...],
        test: tuple[Item, ...],
    ) -> None:
        self._job = job
        self._emit = emit
        self._built = built
        self._run = run
        self._dev = dev
        self._test = test
        self._notes = _Notes()
        self._kept = Checkpoints(job.checkpoints)
        self._eval_steps = job.eval_steps or run.steps_per_epoch
        self._metric = job.metric or built.task.metric

    def run(self) -> None:
        """Train to the end, or until SIGTERM; then the version is in the job's `output`."""
        with terminate_requested() as is_requested:
            self._resume()
            is_whole = self._train(is_requested)
        if not is_whole:
            self._put_best()
            write_folder(Path(self._job.output), self._built.save)
            self._emit("cancelled", step=self._run.step, path=self._job.output)
            return
        self._finish()

    # --- the steps --------------------------------------------------------------------------------

    def _resume(self) -> None:
        kept = self._kept.last()
        if kept is None:
            if self._dev:
                self._notes.before = self._score("before", self._dev, step=0)
                self._check_metric(self._notes.before)
            return
        try:
            self._run.restore(kept.tensors)
        except (KeyError, RuntimeError) as problem:
            raise SyscallError(
                "invalid",
                f"name: the checkpoint {kept.path} is of another job: {problem}; choose another "
                "name or remove it",
                field="name",
            ) from problem
        self._notes = _Notes(**kept.notes)
        self._emit(
            "resumed",
            step=kept.step,
            steps=self._run.steps,
            tokens=self._notes.tokens,
            path=str(kept.path),
        )
        if self._notes.before is not None:
            self._tell("before", self._notes.before, step=0, rows=len(self._dev))

    def _train(self, is_requested: Callable[[], bool]) -> bool:
        """Take the steps that are left; False when SIGTERM cut them short."""
        pace = Pace(self._notes.seconds)
        while self._run.step < self._run.steps and not self._notes.is_over:
            rows = self._run.micro_batch
            step = self._run.take_step()
            if self._run.micro_batch != rows:
                self._emit("micro_batch", rows=self._run.micro_batch, step=step.number)
            self._notes.tokens += step.tokens
            pace.tick(step.tokens)
            self._tell_progress(step, pace)
            is_last = step.number == self._run.steps
            if self._dev and (is_last or step.number % self._eval_steps == 0):
                self._judge(step.number, is_last=is_last)
                pace.skip()
            is_over = is_last or self._notes.is_over or is_requested()
            if is_over or step.number % self._job.checkpoint_steps == 0:
                self._notes.seconds = pace.seconds
                self._save(step.number)
                pace.skip()
            if is_requested() and not (is_last or self._notes.is_over):
                return False
        return True

    def _judge(self, step: int, *, is_last: bool) -> None:
        """Score the weights as they are, and keep them if they are the best so far."""
        when = None if is_last else "during"
        found = self._score(when, self._dev, step=step)
        if self._notes.best is not None and not self._is_better(found, self._notes.best):
            self._notes.since_best += 1
            patience = self._job.patience
            self._notes.is_over = patience is not None and self._notes.since_best >= patience
            return
        self._notes.best, self._notes.best_step, self._notes.since_best = found, step, 0
        weights = {name: p.detach() for name, p in self._run.weights.items()}
        self._kept.save_best(step, weights, {"metrics": found})

    def _check_metric(self, found: dict[str, float]) -> None:
        """Refuse a metric that there is not, before anything is trained."""
        if self._metric not in found:
            raise SyscallError(
                "invalid",
                f"metric: this objective is not scored by {self._metric}; it has "
                f"{', '.join(sorted(found))}",
                field="metric",
            )

    def _is_better(self, found: dict[str, float], than: dict[str, float]) -> bool:
        is_higher_better = (
            self._built.task.is_higher_better
            if self._metric == self._built.task.metric
            else self._metric.rpartition(".")[2] not in LOWER_IS_BETTER
        )
        difference = found[self._metric] - than[self._metric]
        return difference > 0 if is_higher_better else difference < 0

    def _save(self, step: int) -> None:
        path = self._kept.save(step, self._run.state(), asdict(self._notes))
        self._emit("checkpoint", step=step, path=str(path))

    # --- the end ----------------------------------------------------------------------------------

    def _finish(self) -> None:
        self._put_best()
        self._run.average()
        if self._dev:
            best = self._notes.best
            if best is None or self._job.average is not None:
                self._score("after", self._dev, step=self._run.step)
            else:
                self._tell("after", best, step=self._notes.best_step, rows=len(self._dev))
        if self._test:
            self._score("test", self._test, step=self._notes.best_step or self._run.step)
        write_folder(Path(self._job.output), self._built.save)
        self._emit(
            "done",
            seconds=self._notes.seconds,
            tokens=self._notes.tokens,
            steps=self._run.step,
            best_step=self._notes.best_step or self._run.step,
            path=self._job.output,
        )

    def _put_best(self) -> None:
        if self._notes.best_step not in (None, self._run.step):
            best = self._kept.best()
            assert best is not None and best.step == self._notes.best_step
            self._run.put_weights(best.tensors)

    # --- scores and events ------------------------------------------------------------------------

    def _score(self, when: str | None, items: tuple[Item, ...], *, step: int) -> dict[str, float]:
        """The scores on items, told as an event unless `when` is None."""
        measured = self._measure(items)
        if when is not None:
            self._tell(when, measured.metrics, step=step, rows=len(items))
        return measured.metrics

    def _measure(self, items: tuple[Item, ...]) -> Measured:
        """Score; where memory runs out, fewer rows at a time."""
        rows = self._run.micro_batch
        while True:
            try:
                return self._built.task.evaluate(self._built.model, items, batch_size=rows)
            except (MemoryError, RuntimeError) as problem:
                if rows == 1 or not is_out_of_memory(problem):
                    raise
                rows = (rows + 1) // 2

    def _tell(self, when: str, metrics: dict[str, float], *, step: Any, rows: int) -> None:
        fields: JsonObject = {"when": when, "step": step, "rows": rows, "metrics": metrics}
        self._emit("eval", loss=metrics.get("loss"), **fields)

    def _tell_progress(self, step: Step, pace: Pace) -> None:
        computed = step.tokens + step.padded_tokens
        self._emit(
            "progress",
            step=step.number,
            steps=self._run.steps,
            loss=step.loss,
            learning_rate=step.learning_rate,
            tokens=self._notes.tokens,
            tokens_per_s=round(pace.tokens_per_s, 1),
            eta_s=round(pace.step_s * (self._run.steps - step.number), 1),
            padding_share=round(step.padded_tokens / computed, 4),
        )
