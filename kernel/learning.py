"""Learning as syscalls: training jobs as processes, and evaluation.

The work is done in an OS process of its own (`learn.py`); the process that stands for a job is
seen in `ps`, writes progress as JSON lines to its standard output, passes signals on, and pays for
the tokens that are trained on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from llmos.kernel.accounts import Account
from llmos.kernel.devices import Devices
from llmos.kernel.files import FileSystem
from llmos.kernel.job_sources import replayed_files
from llmos.kernel.process import Process
from llmos.kernel.settings import Settings
from llmos.memory.registry import Registry
from llmos.syscalls import calls
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Evaluated, Spawned, Trained
from llmos.syscalls.trap import Trap
from llmos.syscalls.values import JsonObject

if TYPE_CHECKING:
    from llmos.kernel.learn import Base, LearnJobs

C = TypeVar("C", calls.Finetune, calls.Evaluate)

# A training job gives way to inference: it starts behind every process that did not ask for less.
JOB_NICE = 10
# What these train reads whole texts; the others continue them.
ENCODER_OBJECTIVES = ("classify", "tag", "embed")


class TrainedTokens:
    """Charges the tokens of a job's steps to an account, as tokens in.

    Steps that a worker takes again, after one that was killed, are charged again.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._told = 0  # tokens of the run that a worker has told of or begun with

    def require_some(self) -> None:
        """Raises: SyscallError("quota_exceeded") when no token can be paid for."""
        self._account.refund("tokens_in", self._account.reserve_up_to("tokens_in", 1))

    def take(self, event: JsonObject) -> None:
        """Charge what an event tells of, as much of it as the quotas allow.

        Raises: SyscallError("quota_exceeded") when that is not all.
        """
        match event["event"]:
            case "start":
                self._told = 0
            case "resumed":
                self._told = event["tokens"]
            case "progress":
                new: int = event["tokens"] - self._told
                self._told = event["tokens"]
                granted = self._account.reserve_up_to("tokens_in", new)
                self._account.tokens_in += granted
                if granted < new:
                    self._account.charge("tokens_in", new - granted)  # refuses
            case _:
                return


class Job:
    """A finetune on its way: what its process runs, and how signals reach the worker."""

    def __init__(self, jobs: LearnJobs, call: calls.Finetune) -> None:
        self.name = call.name
        self._jobs = jobs
        self._call = call
        self._process: Process | None = None

    def prepare(self, process: Process) -> dict[str, Any]:
        """Pass STOP, CONT and a new priority of the job's process on to the worker."""
        self._process = process
        process.on_stop = [self._hold]
        process.on_nice = [lambda nice: self._jobs.renice(self.name, nice)]
        return {}

    async def run(self, trap: Trap) -> Trained:
        """Train, writing each progress event as a line of standard output.

        Raises: SyscallError; "quota_exceeded" once the tokens are spent, training then having been
        cancelled: its best version so far is kept, and the same call goes on.
        """
        lines: asyncio.Queue[bytes] = asyncio.Queue()
        process = self._process
        assert process is not None
        tokens = TrainedTokens(process.account)
        tokens.require_some()
        spent: list[SyscallError] = []

        def on_progress(event: JsonObject) -> None:
            lines.put_nowait(json.dumps(event, ensure_ascii=False).encode() + b"\n")
            if spent:
                return
            try:
                tokens.take(event)
            except SyscallError as refusal:
                spent.append(refusal)
                training.cancel()

        training = asyncio.ensure_future(
            self._jobs.finetune(
                self._call, on_progress=on_progress, nice=process.nice, pid=process.pid
            )
        )
        try:
            while not training.done() or not lines.empty():
                line = asyncio.ensure_future(lines.get())
                await asyncio.wait((line, training), return_when=asyncio.FIRST_COMPLETED)
                if line.done():
                    await trap.call(calls.Write(fd=1, data=line.result()))
                else:
                    line.cancel()
            if spent and training.cancelled():
                raise spent[0]
            return training.result()
        finally:
            if not training.done():
                training.cancel()
                await asyncio.wait((training,))
                while not lines.empty():  # what it kept; TERM leaves time to say so
                    await trap.call(calls.Write(fd=1, data=lines.get_nowait()))

    def _hold(self, is_held: bool) -> None:
        if is_held:
            self._jobs.stop(self.name)
        else:
            self._jobs.resume(self.name)


class Learning:
    def __init__(
        self,
        settings: Settings,
        *,
        devices: Devices,
        registry: Callable[[], Registry],
        files: FileSystem,
        spawn: Callable[[Process, Job], Spawned],
    ) -> None:
        self._files = files
        self._settings = settings
        self._devices = devices
        self._registry = registry
        self._spawn = spawn
        self._jobs: LearnJobs | None = None
        self._evaluating = asyncio.Lock()

    def finetune(self, process: Process, call: calls.Finetune) -> Spawned:
        """Start a training job as a child of the caller."""
        if not call.data and not call.tasks:
            raise SyscallError(
                "invalid", "data: a job needs rows, or tasks with rows", field="data"
            )
        return self._spawn(process, Job(self._opened(), self._with_files(process, call)))

    async def evaluate(
        self,
        process: Process,
        call: calls.Evaluate,
        *,
        on_rows: Callable[[list[JsonObject]], None] | None = None,
    ) -> Evaluated:
        """Held-out loss, computed in an OS process of its own; one evaluation runs at a time."""
        call = self._with_data(process, call)
        async with self._evaluating:
            return await self._opened().evaluate(call, on_rows=on_rows, pid=process.pid)

    def _with_data(self, process: Process, call: C) -> C:
        """The call with its data file where the process may read it. Raises: as `readable`."""
        if not isinstance(call.data, str):
            return call
        path = self._files.readable(process, call.data)
        return call.model_copy(update={"data": str(path)})

    def _with_files(self, process: Process, call: calls.Finetune) -> calls.Finetune:
        """The call with every data file where the process may read it. Raises: as `readable`."""

        def readable(path: str) -> str:
            return str(self._files.readable(process, path))

        held_out = {
            field: None if path is None else readable(path)
            for field, path in (("eval_data", call.eval_data), ("test_data", call.test_data))
        }
        tasks = tuple(task.model_copy(update={"data": readable(task.data)}) for task in call.tasks)
        replay = call.replay
        if replay is not None:
            paths = tuple(readable(path) for path in replay.paths)
            replay = replay.model_copy(update={"paths": paths})
            for path in replayed_files(self._registry(), replay):  # those of versions too
                readable(path)
        with_data = self._with_data(process, call)
        return with_data.model_copy(update={**held_out, "tasks": tasks, "replay": replay})

    def _opened(self) -> LearnJobs:
        if self._jobs is None:
            from llmos.kernel.learn import LearnJobs

            self._jobs = LearnJobs(
                folder=self._settings.home / "jobs",
                registry=self._registry(),
                resolve_base=self._resolve_base,
                inference=self._devices,
                redactor=self._settings.redactor,
            )
        return self._jobs

    def _resolve_base(self, name: str | None, objective: str) -> Base:
        """The weights that a configured model, or a base by its own name, is trained on.

        What reads texts is trained on the embedding model, unless another base is named.
        """
        from llmos.kernel.learn import Base

        if objective in ENCODER_OBJECTIVES:
            embedding = self._settings.embedding
            if embedding is None or embedding.weights is None:
                raise SyscallError(
                    "not_available",
                    f"base: {objective} trains an encoder, and no embedding model is configured "
                    "that has weights",
                    field="base",
                )
            if name not in (None, embedding.name):
                raise SyscallError(
                    "unknown_model",
                    f"base: {objective} trains the encoder {embedding.name} or a version of it, "
                    f"and {name} is neither",
                    field="base",
                    known=[embedding.name],
                )
            return Base(embedding.name, embedding.weights())
        for setting in self._settings.models.values():
            if name in (setting.name, setting.base) and setting.weights is not None:
                return Base(setting.base, setting.weights())
        setting = self._devices.setting(name)
        if setting.weights is None:
            raise SyscallError(
                "not_available", f"driver {setting.driver} has no weights to train", field="base"
            )
        return Base(setting.base, setting.weights())
