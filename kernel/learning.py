"""Learning as syscalls: training jobs as processes, and evaluation.

The work is done in an OS process of its own (`learn.py`); the process that stands for a job is
seen in `ps`, writes progress as JSON lines to its standard output, and passes signals on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llmos.kernel.devices import Devices
from llmos.kernel.files import FileSystem
from llmos.kernel.process import Process
from llmos.kernel.settings import Settings
from llmos.memory.registry import Registry
from llmos.syscalls import calls
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Evaluated, Spawned, Trained
from llmos.syscalls.trap import Trap
from llmos.syscalls.values import JsonObject

if TYPE_CHECKING:
    from llmos.kernel.learn import LearnJobs

C = TypeVar("C", calls.Finetune, calls.Evaluate)

# A training job gives way to inference: it starts behind every process that did not ask for less.
JOB_NICE = 10


class Job:
    """A finetune on its way: what its process runs, and how signals reach the worker."""

    def __init__(self, jobs: LearnJobs, call: calls.Finetune) -> None:
        self.name = call.name
        self._jobs = jobs
        self._call = call

    def prepare(self, process: Process) -> dict[str, Any]:
        """Pass STOP and CONT of the job's process on to the worker."""
        process.on_stop = [self._hold]
        return {}

    async def run(self, trap: Trap) -> Trained:
        """Train, writing each progress event as a line of standard output."""
        lines: asyncio.Queue[bytes] = asyncio.Queue()

        def on_progress(event: JsonObject) -> None:
            lines.put_nowait(json.dumps(event, ensure_ascii=False).encode() + b"\n")

        training = asyncio.ensure_future(self._jobs.finetune(self._call, on_progress=on_progress))
        try:
            while not training.done() or not lines.empty():
                line = asyncio.ensure_future(lines.get())
                await asyncio.wait((line, training), return_when=asyncio.FIRST_COMPLETED)
                if line.done():
                    await trap.call(calls.Write(fd=1, data=line.result()))
                else:
                    line.cancel()
            return training.result()
        finally:
            if not training.done():
                training.cancel()
                await asyncio.wait((training,))

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
        return self._spawn(process, Job(self._opened(), self._with_data(process, call)))

    async def evaluate(self, process: Process, call: calls.Evaluate) -> Evaluated:
        """Held-out loss, computed in an OS process of its own; one evaluation runs at a time."""
        call = self._with_data(process, call)
        async with self._evaluating:
            return await self._opened().evaluate(call)

    def _with_data(self, process: Process, call: C) -> C:
        """The call with its data file where the process may read it. Raises: as `readable`."""
        if not isinstance(call.data, str):
            return call
        path = self._files.readable(process, call.data)
        return call.model_copy(update={"data": str(path)})

    def _opened(self) -> LearnJobs:
        if self._jobs is None:
            from llmos.kernel.learn import LearnJobs

            self._jobs = LearnJobs(
                folder=self._settings.home / "adapters",
                registry=self._registry(),
                resolve_base=self._resolve_base,
            )
        return self._jobs

    def _resolve_base(self, model: str | None) -> tuple[str, Path]:
        """The weights that a configured model, or a base by its own name, is trained on."""
        for setting in self._settings.models.values():
            if model in (setting.name, setting.base) and setting.weights is not None:
                return setting.base, setting.weights()
        setting = self._devices.setting(model)
        if setting.weights is None:
            raise SyscallError(
                "not_available", f"driver {setting.driver} has no weights to train", field="base"
            )
        return setting.base, setting.weights()
