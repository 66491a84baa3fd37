"""Training jobs: a call becomes a worker's job, a worker's events become a version.

Owns the folder of jobs: `NAME/` holds a finetune's job, rows, log and adapter. The training itself
is `drivers/training/worker.py`, in an OS process of its own and behind inference. Refuses to know
processes of the kernel and their signals (`learning.py`). Event-loop thread only.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmos.drivers.training import worker as training_worker
from llmos.drivers.training.worker import EvaluateJob, TrainJob
from llmos.kernel.worker import Worker
from llmos.memory.registry import Registry
from llmos.syscalls.calls import Evaluate, Example, Finetune
from llmos.syscalls.errors import ErrorValue, SyscallError
from llmos.syscalls.results import Evaluated, ModelVersion, Trained
from llmos.syscalls.values import JsonObject

OBJECTIVES = ("instruct",)
METHODS = ("lora",)
GRACE_S = 10.0  # from SIGTERM to SIGKILL: a training step and a checkpoint, on most machines

OnProgress = Callable[[JsonObject], None]


class LearnJobs:
    """All training jobs of a kernel; one trains at a time and the others queue.

    `resolve_base` gives the name of a base and where its weights are. `threads` None is half of
    the processors, so that inference keeps the other half.
    """

    def __init__(
        self,
        *,
        folder: Path,
        registry: Registry,
        resolve_base: Callable[[str | None], tuple[str, Path]],
        threads: int | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        self._folder = folder
        self._registry = registry
        self._resolve_base = resolve_base
        self._threads = threads or max(1, len(os.sched_getaffinity(0)) // 2)
        self._grace_s = grace_s
        self._workers: dict[str, Worker] = {}
        self._turn = asyncio.Lock()

    async def finetune(self, call: Finetune, *, on_progress: OnProgress) -> Trained:
        """Train an adapter, hand on the worker's events, and register the result.

        Cancelling this ends the worker (see `Worker.run`): an adapter that it had saved stays in
        the job's folder, as the last "checkpoint" event said, and is not registered. A job of the
        same name starts over.
        Raises: SyscallError: "not_available" for an objective or method, "invalid" for a name in
        use or bad data, "busy" for a name that trains now, "failed" when training fails.
        """
        _check_available("objective", call.objective, OBJECTIVES)
        _check_available("method", call.method, METHODS)
        if call.name in self._workers:
            raise SyscallError("busy", f"a job named {call.name} is training now", name=call.name)
        folder = self._folder / call.name
        worker = self._worker(folder)
        self._workers[call.name] = worker
        try:
            await asyncio.to_thread(self._check_unused, call.name)
            if self._turn.locked():
                on_progress({"event": "queued"})
            async with self._turn:
                base, weights = self._resolve_base(call.base)
                job = await asyncio.to_thread(self._prepare_training, call, folder, weights)
                record = _Record(on_progress)
                await record.follow(worker)
                version = _version(call, base, job, record)
                version = await asyncio.to_thread(self._registry.add, version)
                return record.trained(version)
        finally:
            del self._workers[call.name]

    async def evaluate(self, call: Evaluate) -> Evaluated:
        """The loss of a base, or of an adapter on its base, over all rows.

        Without an adapter it is the base itself that is measured, whatever is promoted.
        Raises: SyscallError: "unknown_model", "invalid" for bad data or rows that are too long,
        "failed".
        """
        model, adapter = call.model, None
        if call.adapter is not None:
            adapter = await asyncio.to_thread(self._registry.get, call.adapter)
            model = model or adapter.base
        base, weights = self._resolve_base(model)
        if adapter is not None and adapter.base != base:
            raise SyscallError(
                "invalid",
                f"adapter: {adapter.name} was trained on {adapter.base}, not on {base}",
                field="adapter",
            )
        folder = await asyncio.to_thread(self._scratch)
        try:
            await asyncio.to_thread(self._prepare_evaluation, call, folder, weights, adapter)
            record = _Record(lambda _: None)
            await record.follow(self._worker(folder))
            return record.evaluated()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def stop(self, name: str) -> None:
        """Hold a job's worker where it is; without effect when there is none."""
        if worker := self._workers.get(name):
            worker.hold(True)

    def resume(self, name: str) -> None:
        """Let a held worker go on."""
        if worker := self._workers.get(name):
            worker.hold(False)

    # --- preparing a job; worker threads ----------------------------------------------------------

    def _check_unused(self, name: str) -> None:
        if any(version.name == name for version in self._registry.list()):
            raise SyscallError(
                "invalid",
                f"name: the registry has a version {name} already; choose another name",
                field="name",
            )

    def _prepare_training(self, call: Finetune, folder: Path, weights: Path) -> TrainJob:
        try:
            if folder.exists():  # what an earlier job of this name left: it was never registered
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            data, data_name = _data_file(call.data, folder)
            job = TrainJob(
                base=str(weights),
                data=str(data),
                data_name=data_name,
                batch_size=call.batch_size,
                max_length_tokens=call.max_length_tokens,
                threads=self._threads,
                parent=os.getpid(),
                output=str(folder / "adapter"),
                rank=call.rank,
                learning_rate=call.learning_rate or 2e-4,
                epochs=call.epochs,
                max_steps=call.max_steps,
                eval_share=call.eval_share,
                seed=call.seed,
            )
            _job_file(folder).write_text(job.model_dump_json(indent=2), encoding="utf-8")
        except OSError as problem:
            raise _unwritable(folder, problem) from problem
        return job

    def _prepare_evaluation(
        self, call: Evaluate, folder: Path, weights: Path, adapter: ModelVersion | None
    ) -> None:
        try:
            data, data_name = _data_file(call.data, folder)
            job = EvaluateJob(
                base=str(weights),
                data=str(data),
                data_name=data_name,
                max_length_tokens=call.max_length_tokens,
                threads=self._threads,
                parent=os.getpid(),
                adapter=None if adapter is None else adapter.path,
            )
            _job_file(folder).write_text(job.model_dump_json(indent=2), encoding="utf-8")
        except OSError as problem:
            raise _unwritable(folder, problem) from problem

    def _scratch(self) -> Path:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(dir=self._folder, prefix=".evaluate-"))
        except OSError as problem:
            raise _unwritable(self._folder, problem) from problem

    def _worker(self, folder: Path) -> Worker:
        # -P: no file in the folder where the kernel was started stands for a library's module.
        command = (sys.executable, "-P", "-m", training_worker.__name__, str(_job_file(folder)))
        return Worker(command, log=folder / "worker.log", grace_s=self._grace_s)


@dataclass(slots=True)
class _Record:
    """What a worker has said so far."""

    on_progress: OnProgress
    losses: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    evals: dict[str, JsonObject] = field(default_factory=dict[str, JsonObject])
    last: dict[str, JsonObject] = field(default_factory=dict[str, JsonObject])  # by event

    async def follow(self, worker: Worker) -> None:
        """Run a worker to its end. Raises: the error that it told of, or how it died."""
        try:
            await worker.run(self._hear)
        except SyscallError as died:
            if told := self.last.get("error"):
                fields = {key: value for key, value in told.items() if key != "event"}
                raise SyscallError.from_value(ErrorValue(**fields)) from died
            raise
        if kept := self.last.get("cancelled"):
            raise SyscallError(
                "failed",
                f"the worker was told to stop from outside, after step {kept['step']}; its adapter "
                f"so far is in {kept['path']}",
                step=kept["step"],
                path=kept["path"],
            )

    def _hear(self, event: JsonObject) -> None:
        match event["event"]:
            case "progress":
                self.losses.append((event["step"], event["loss"]))
            case "eval":
                self.evals[event["when"]] = event
            case kind:
                self.last[kind] = event
        self.on_progress(event)

    def eval_loss(self, when: str) -> float | None:
        return self.evals[when]["loss"] if when in self.evals else None

    def trained(self, version: ModelVersion) -> Trained:
        done = self.last["done"]
        return Trained(
            version=version,
            losses=tuple(self.losses),
            eval_loss_before=self.eval_loss("before"),
            eval_loss_after=self.eval_loss("after"),
            seconds=done["seconds"],
            tokens=done["tokens"],
        )

    def evaluated(self) -> Evaluated:
        only = self.evals["only"]
        return Evaluated(
            loss=only["loss"],
            perplexity=math.exp(only["loss"]),
            rows=only["rows"],
            tokens=only["tokens"],
        )


def _version(call: Finetune, base: str, job: TrainJob, record: _Record) -> ModelVersion:
    """The registry's entry: where the adapter is, how good, and from what it was made."""
    metrics = {
        "train_loss": record.losses[-1][1],
        "eval_loss_before": record.eval_loss("before"),
        "eval_loss_after": record.eval_loss("after"),
    }
    counts = {key: value for key, value in record.last["start"].items() if key != "event"}
    return ModelVersion(
        name=call.name,
        kind="adapter",
        base=base,
        parent=base,
        path=job.output,
        metrics={name: value for name, value in metrics.items() if value is not None},
        card={
            "objective": call.objective,
            "method": call.method,
            "data": {"path": call.data if isinstance(call.data, str) else None, **counts},
            "settings": job.model_dump(
                include={
                    "rank",
                    "learning_rate",
                    "epochs",
                    "max_steps",
                    "batch_size",
                    "max_length_tokens",
                    "eval_share",
                    "seed",
                }
            ),
        },
    )


def _check_available(field: str, asked: str, available: Sequence[str]) -> None:
    if asked not in available:
        raise SyscallError(
            "not_available",
            f"{field}: {asked} cannot be trained here; available: {', '.join(available)}",
            field=field,
            available=list(available),
        )


def _data_file(data: tuple[Example, ...] | str, folder: Path) -> tuple[Path, str | None]:
    """The rows as a file, and what errors call it: examples of a call go into the job's folder."""
    if isinstance(data, str):
        return Path(data).absolute(), data
    path = folder / "rows.jsonl"
    path.write_text("".join(row.model_dump_json() + "\n" for row in data), encoding="utf-8")
    return path, None


def _job_file(folder: Path) -> Path:
    return folder / "job.json"


def _unwritable(folder: Path, problem: OSError) -> SyscallError:
    return SyscallError(
        "storage", f"the folder {folder} cannot be written: {problem}", path=str(folder)
    )
