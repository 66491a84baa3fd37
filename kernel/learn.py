"""Training jobs: a call becomes a worker's job, a worker's events become a version.

Owns the jobs' order and what happens when a worker dies. The training itself is
`drivers/training/worker.py`, in an OS process of its own and behind inference; a job's folder is
`job_folder.py`. Refuses to know processes of the kernel and their signals (`learning.py`).
Event-loop thread only.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from llmos.drivers.training import worker as training_worker
from llmos.drivers.training.decoder import kind_of
from llmos.drivers.training.job import EvaluateJob, TrainJob
from llmos.drivers.training.methods import check_method
from llmos.drivers.training.provenance import code_version
from llmos.kernel.job_folder import FolderErrors, JobFolder, settings_of, write_rows
from llmos.kernel.job_record import KEPT_EVENTS, JobRecord, OnProgress
from llmos.kernel.job_sources import check_join, joined_folders, replayed_files
from llmos.kernel.process import INIT
from llmos.kernel.worker import Worker
from llmos.kernel.yielding import Inference, Yielding
from llmos.memory.registry import Registry
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.evaluation import Evaluate
from llmos.syscalls.evaluation_results import Evaluated
from llmos.syscalls.learning import Finetune
from llmos.syscalls.learning_results import ModelVersion, Trained
from llmos.syscalls.recipe import Objective, Recipe
from llmos.syscalls.values import JsonObject

GRACE_S = 10.0  # from SIGTERM to SIGKILL: a training step and a checkpoint, on most machines
RESTARTS = 3  # of a worker that is killed, without a new checkpoint between
NICE = 10  # of a worker whose process asks for nothing else


class Base(NamedTuple):
    """What a job starts from: the base's name and weights."""

    name: str
    weights: Path


class ResolveBase(Protocol):
    """Finds the base of a name (None: the default one) that an objective trains."""

    def __call__(self, name: str | None, objective: str, /) -> Base: ...


class LearnJobs:
    """All training jobs of a kernel; one trains at a time and the others queue.

    `threads` None is all processors: a worker and `inference`, where there is one, take turns.
    """

    def __init__(
        self,
        *,
        folder: Path,
        registry: Registry,
        resolve_base: ResolveBase,
        threads: int | None = None,
        grace_s: float = GRACE_S,
        inference: Inference | None = None,
        redactor: str | None = None,
    ) -> None:
        self._folder = folder
        self._registry = registry
        self._resolve_base = resolve_base
        self._threads = threads or len(os.sched_getaffinity(0))
        self._grace_s = grace_s
        self._inference = inference
        self._redactor = redactor
        self._workers: dict[str, Worker] = {}
        self._held: set[str] = set()
        self._names: set[str] = set()
        self._turn = asyncio.Lock()

    async def finetune(
        self, call: Finetune, *, on_progress: OnProgress, nice: int = NICE, pid: int = INIT
    ) -> Trained:
        """Train a version, hand on the worker's events, and register the result.

        A job that stopped anywhere (killed, cancelled, the kernel gone) goes on from its last
        checkpoint when the same call comes again. A worker that a signal killed is started again,
        at most `RESTARTS` times without a new checkpoint. Cancelling this ends the worker (see
        `Worker.run`): the best version so far stays in the job's folder and is not registered.
        What it goes on from is used by the process `pid` meanwhile and cannot be deleted.
        Raises: SyscallError: "not_available" for an objective, method or device, "invalid" for a
        name in use, another job's name or bad data, "busy" for a name that trains now, "failed"
        when training fails, "storage".
        """
        if call.name in self._names:
            raise SyscallError("busy", f"a job named {call.name} is training now", name=call.name)
        self._names.add(call.name)
        try:
            check_method(call.method, device=call.device or "cuda")
            await asyncio.to_thread(self._check_unused, call.name)
            needed = await asyncio.to_thread(self._needed, call)
            with self._registry.used(needed, pid):
                if self._turn.locked():
                    on_progress({"event": "queued"})
                async with self._turn:
                    return await self._train(call, on_progress, nice)
        finally:
            self._names.discard(call.name)
            self._held.discard(call.name)

    async def evaluate(
        self,
        call: Evaluate,
        *,
        on_rows: Callable[[list[JsonObject]], None] | None = None,
        pid: int = INIT,
    ) -> Evaluated:
        """The loss of a base, or of a version on its base, over all rows.

        Without a version it is the base itself that is measured, whatever is promoted. `on_rows`
        is told each row's origin, mean loss and tokens. The version is in use by the process
        `pid` meanwhile, and so not deleted.
        Raises: SyscallError: "unknown_model", "invalid" for bad data or rows that are too long,
        "failed".
        """
        needed = await asyncio.to_thread(self._chain, call.adapter or call.model)
        with self._registry.used(needed, pid):
            return await self._evaluate(call, on_rows)

    async def _evaluate(
        self, call: Evaluate, on_rows: Callable[[list[JsonObject]], None] | None
    ) -> Evaluated:
        base, version = await asyncio.to_thread(self._measured, call)
        folder = await asyncio.to_thread(self._scratch)
        try:
            await asyncio.to_thread(self._prepare_evaluation, call, folder, base, version)
            record = JobRecord(lambda _: None)
            try:
                worker = self._worker(folder / "job.json", folder / "worker.log")
                async with Yielding(worker, self._inference):
                    await worker.run(record.hear)
            except SyscallError as died:
                record.raise_told(died)
                raise
            if on_rows is not None:
                on_rows(record.rows)
            return record.evaluated()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def stop(self, name: str) -> None:
        """Hold a job's worker where it is; without effect when there is none."""
        if name in self._names:
            self._held.add(name)
        if worker := self._workers.get(name):
            worker.hold(True)

    def resume(self, name: str) -> None:
        """Let a held worker go on."""
        self._held.discard(name)
        if worker := self._workers.get(name):
            worker.hold(False)

    def renice(self, name: str, nice: int) -> None:
        """Put a job's worker further behind; a system lets nobody but root move it forward."""
        if worker := self._workers.get(name):
            worker.renice(_system_nice(nice))

    # --- one job ----------------------------------------------------------------------------------

    async def _train(self, call: Finetune, on_progress: OnProgress, nice: int) -> Trained:
        folder = JobFolder(self._folder / call.name)
        start = await asyncio.to_thread(self._start, call)
        job = await asyncio.to_thread(self._prepare, call, folder, start, nice)
        record = JobRecord(on_progress)
        for event in await asyncio.to_thread(lambda: list(folder.past())):
            record.take(event)
        with folder.errors(), folder.events.open("a", encoding="utf-8") as kept:

            def hear(event: JsonObject) -> None:
                if event["event"] in KEPT_EVENTS:
                    kept.write(json.dumps(event) + "\n")
                    kept.flush()
                record.hear(event)

            await self._run(call.name, folder, record, hear)
        version = _version(call, start, job, record)
        version = await asyncio.to_thread(self._registry.add, version)
        await asyncio.to_thread(folder.clean, keep_version=version.path == job.output)
        return record.trained(version)

    async def _run(self, name: str, folder: JobFolder, record: JobRecord, hear: OnProgress) -> None:
        """Run workers until one comes to its end."""
        attempts = 0
        while True:
            step = folder.last_step()
            worker = self._worker(folder.job_file, folder.log)
            worker.hold(name in self._held)
            self._workers[name] = worker
            try:
                async with Yielding(worker, self._inference):
                    await worker.run(hear)
            except SyscallError as died:
                record.raise_told(died)
                status = died.fields.get("status")
                attempts = 1 if folder.last_step() != step else attempts + 1
                if not isinstance(status, int) or status >= 0 or attempts > RESTARTS:
                    raise
                hear({"event": "restarted", "signal": -status, "step": folder.last_step()})
            else:
                record.raise_cancelled()
                return
            finally:
                del self._workers[name]

    # --- preparing; worker threads ----------------------------------------------------------------

    def _check_unused(self, name: str) -> None:
        if any(version.name == name for version in self._registry.list()):
            raise SyscallError(
                "invalid",
                f"name: the registry has a version {name} already; choose another name",
                field="name",
            )

    def _needed(self, call: Finetune) -> tuple[str, ...]:
        """The versions that a job is made from, and those on whose weights they stand."""
        names = (call.base, *call.join)
        return tuple(dict.fromkeys(one for name in names for one in self._chain(name)))

    def _chain(self, name: str | None) -> tuple[str, ...]:
        """A version of this name, and the versions on whose weights it stands."""
        known = {version.name: version for version in self._registry.list()}
        found: dict[str, None] = {}
        while name in known and name not in found:
            found[name] = None
            name = known[name].base
        return tuple(found)

    def _start(self, call: Finetune) -> _Start:
        """What a call's base is: a version to go on from, or a base."""
        check_join(call)
        if call.scratch is not None:
            if call.base is not None or call.objective != "pretrain":
                raise SyscallError(
                    "invalid",
                    "scratch: a new model is pre-trained from nothing, so it has no base and the "
                    "objective pretrain",
                    field="scratch",
                )
            return _Start(Base(call.name, Path()), None)
        # The tasks of a mixture share one body, so the first tells what kind that is.
        objective = call.tasks[0].objective if call.tasks else call.objective
        parent = next((one for one in self._registry.list() if one.name == call.base), None)
        if parent is None:
            return _Start(self._base(call.base, objective), None)
        if parent.kind not in ("adapter", "task", "full") or parent.base is None:
            raise SyscallError(
                "invalid",
                f"base: {parent.name} is a version of kind {parent.kind}, which has no weights to "
                "go on from",
                field="base",
            )
        if call.join:
            raise SyscallError(
                "invalid",
                f"base: with join the rows train an adapter on the base itself, not on the version "
                f"{parent.name}",
                field="base",
            )
        files = self._registry.load(parent.name)
        if parent.kind == "full":
            # What is trained beside its weights, and not into them, works on them alone.
            is_beside = kind_of(call.method) == "adapter"
            name = parent.name if is_beside else parent.base
            return _Start(Base(name, files), parent.model_copy(update={"path": None}))
        base = self._base(parent.base, objective)
        return _Start(base, parent.model_copy(update={"path": str(files)}))

    def _base(self, name: str | None, objective: str) -> Base:
        """The weights of this name: a version's that has all of them, else a base's."""
        for version in self._registry.list():
            if version.name == name and version.kind == "full":
                return Base(version.name, self._registry.load(version.name))
        return self._resolve_base(name, objective)

    def _prepare(self, call: Finetune, folder: JobFolder, start: _Start, nice: int) -> TrainJob:
        base, parent = start
        data, data_name = folder.open(call, base.name if parent is None else parent.name)
        recipe = call.model_dump(include=set(Recipe.model_fields))
        has_files = parent is not None and parent.path is not None
        job = TrainJob(
            **recipe,
            base=str(base.weights),
            base_name=base.name,
            parent=parent.path if parent is not None else None,
            parent_kind=_kind(parent.kind) if parent is not None and has_files else None,
            data=data,
            data_name=data_name,
            replay_data=replayed_files(self._registry, call.replay),
            name=call.name,
            join_folders=joined_folders(self._registry, call, base=base.name),
            redactor=self._redactor,
            threads=self._threads,
            nice=_system_nice(nice),
            owner_pid=os.getpid(),
            output=str(folder.output),
        )
        folder.write_job(job)
        return job

    def _measured(self, call: Evaluate) -> _Start:
        """The base that is measured, and the version on it."""
        objective = _measured_by(call)
        if call.adapter is not None:
            version = self._registry.get(call.adapter)
            base = self._base(call.model or version.base, objective)
        else:
            known = (one for one in self._registry.list() if one.name == call.model)
            version = next(known, None)
            if version is None:
                return _Start(self._resolve_base(call.model, objective), None)
            files = self._registry.load(version.name)
            if version.kind == "full":
                return _Start(Base(version.base or version.name, files), None)
            base = self._base(version.base, objective)
        if version.base != base.name:
            raise SyscallError(
                "invalid",
                f"adapter: {version.name} was trained on {version.base}, not on {base.name}",
                field="adapter",
            )
        files = self._registry.load(version.name)
        return _Start(base, version.model_copy(update={"path": str(files)}))

    def _prepare_evaluation(
        self, call: Evaluate, folder: Path, base: Base, version: ModelVersion | None
    ) -> None:
        with FolderErrors(folder):
            data, data_name = write_rows(call.data, folder)
            job = EvaluateJob(
                base=str(base.weights),
                data=data,
                data_name=data_name,
                objective=_measured_by(call),
                max_length_tokens=call.max_length_tokens,
                threads=self._threads,
                owner_pid=os.getpid(),
                version=None if version is None else version.path,
                version_kind=None if version is None else _kind(version.kind),
            )
            (folder / "job.json").write_text(job.model_dump_json(indent=2), encoding="utf-8")

    def _scratch(self) -> Path:
        with FolderErrors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(dir=self._folder, prefix=".evaluate-"))

    def _worker(self, job_file: Path, log: Path) -> Worker:
        # -P: no file in the folder where the kernel was started stands for a library's module.
        command = (sys.executable, "-P", "-m", training_worker.__name__, str(job_file))
        return Worker(command, log=log, grace_s=self._grace_s)


class _Start(NamedTuple):
    """Where a job starts: its base, and the version on it that training goes on from."""

    base: Base
    parent: ModelVersion | None


def _version(call: Finetune, start: _Start, job: TrainJob, record: JobRecord) -> ModelVersion:
    """The registry's entry: where its files are, how good it is, and from what it was made."""
    told = record.last["start"]
    counts = {key: value for key, value in told.items() if key not in ("event", "data_hashes")}
    return ModelVersion(
        name=call.name,
        kind=told["kind"],
        base=start.base.name,
        parent=_made_from(call, start),
        path=job.output,
        metrics=record.metrics(),
        data_hashes=_by_purpose(job, told["data_hashes"]),
        card={
            "objective": call.objective,
            "method": call.method,
            "data": {"path": job.data or None, **counts},
            "settings": settings_of(job),
            "code": code_version(),
            "steps": record.last["done"]["steps"],
            "best_step": record.last["done"]["best_step"],
            "curves": record.curves(),
        },
    )


def _made_from(call: Finetune, start: _Start) -> str | None:
    """A version's parent: what it goes on from, the first that it joins, or the base."""
    if start.parent is not None:
        return start.parent.name
    if call.join:
        return call.join[0]
    return None if call.scratch is not None else start.base.name


def _by_purpose(job: TrainJob, hashes: dict[str, str]) -> dict[str, str]:
    """The hashes of a job's files by what each was for; those without a purpose by their path."""
    purposes = {job.data: "train", job.eval_data: "eval", job.test_data: "test"}
    return {purposes.get(path) or path: value for path, value in hashes.items()}


def _measured_by(call: Evaluate) -> Objective:
    """The objective whose loss is asked for; what is generated has none."""
    if call.objective == "generate":
        raise SyscallError(
            "invalid", "objective: answers that are generated have no loss", field="objective"
        )
    return call.objective or "instruct"


def _kind(kind: str) -> Literal["full", "adapter", "task"] | None:
    match kind:
        case "full" | "adapter" | "task":
            return kind
        case _:
            return None


def _system_nice(nice: int) -> int:
    """A process's priority as the system's: behind inference, whatever it asks for."""
    return max(1, min(19, nice))
