"""`Search`: finetunes with varied settings, as processes, until the best settings are known.

Owns a search's folder and its process, whose children are the finetunes: each is seen in `ps`,
obeys signals and is charged to its parent's quota. A child that does worse than others did is told
to end. What to try next is `memory/trials.py`. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import types
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin

from llmos.drivers.metrics.report import search_parts, write_pages
from llmos.kernel.process import Process
from llmos.memory.registry import Registry
from llmos.memory.trials import Choices, Range, Trials
from llmos.syscalls import calls
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.evaluation import Between, OneOf
from llmos.syscalls.evaluation_results import Searched
from llmos.syscalls.learning_results import ModelVersion
from llmos.syscalls.results import Exited
from llmos.syscalls.trap import Trap
from llmos.syscalls.values import JsonObject

P = ParamSpec("P")
R = TypeVar("R")

# What decides where no metric is named; of everything else more is better.
METRICS = {
    "instruct": "loss",
    "pretrain": "loss",
    "prefer": "loss",
    "classify": "accuracy",
    "tag": "f1",
    "embed": "mrr",
}
MIXTURE_METRIC = "score"
LOWER_IS_BETTER = frozenset({"loss", "perplexity", "calibration_error", "brier"})
GRACE_S = 60.0  # for a trial that was given up: it saves before it ends


@dataclass(frozen=True, slots=True)
class Machinery:
    """What a search needs of the kernel: output and signals of processes, the registry, a home."""

    output: Callable[[int], AsyncIterator[bytes]]
    end: Callable[[int], None]
    registry: Callable[[], Registry]
    home: Path


class SearchJob:
    """A search on its way; `run` is its process's program."""

    def __init__(self, machinery: Machinery, call: calls.Search) -> None:
        self.name = call.finetune.name
        self._machinery = machinery
        self._call = call
        self._folder = machinery.home / "searches" / self.name
        default = MIXTURE_METRIC if call.finetune.tasks else METRICS[call.finetune.objective]
        self._metric = call.metric or default
        self._is_higher_better = (
            self._metric.rpartition(".")[2] not in LOWER_IS_BETTER
            if call.is_higher_better is None
            else call.is_higher_better
        )
        self._running: set[int] = set()
        self._begun = 0
        self._turn = asyncio.Lock()  # the trials' file takes one thread at a time

    def prepare(self, process: Process) -> dict[str, Any]:
        """Nothing: signals reach the children by themselves."""
        return {}

    async def run(self, trap: Trap) -> Searched:
        """Try settings, `parallel` at a time, and keep the version that is best.

        Ending the process ends its children; what they had saved is gone on from when the search is
        issued again. Raises: SyscallError: "invalid" for a space that fits no finetune, "failed"
        when no trial ran to its end.
        """
        trials = await asyncio.to_thread(self._opened)
        try:
            self._begun = len(await asyncio.to_thread(trials.finished))
            workers = [self._work(trap, trials) for _ in range(self._call.parallel)]
            async with asyncio.TaskGroup() as group:
                for worker in workers:
                    group.create_task(worker)
            return await self._summed_up(trials)
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        finally:
            for pid in self._running:
                self._machinery.end(pid)
            trials.close()

    def _opened(self) -> Trials:
        call = self._call
        for end in (_first, _last):  # both ends of every range are settings that a finetune has
            settings = {name: end(values) for name, values in _space(call).items()}
            _with(call.finetune, settings)
        return Trials(
            self._folder / "trials.sqlite",
            space=_space(call),
            is_higher_better=self._is_higher_better,
            is_pruned=call.is_pruned,
            seed=call.seed,
            fingerprint={
                "finetune": call.finetune.model_dump(mode="json"),
                "space": {name: one.model_dump(mode="json") for name, one in call.space.items()},
                "metric": self._metric,
            },
        )

    async def _work(self, trap: Trap, trials: Trials) -> None:
        while self._begun < self._call.trials:
            self._begun += 1
            number, settings = await self._of(trials.ask)
            await self._try(trap, trials, number, settings)

    # --- one trial --------------------------------------------------------------------------------

    async def _try(self, trap: Trap, trials: Trials, number: int, settings: JsonObject) -> None:
        name = self._trial_name(number)
        await _say(trap, {"event": "trial", "trial": number, "name": name, "settings": settings})
        try:
            version = self._registered(name)
            if version is None:  # else it ended just before the kernel did
                version = await self._finetuned(trap, trials, number, settings)
        except SyscallError as problem:
            await self._of(trials.fail, number, str(problem))
            await _say(trap, {"event": "failed", "trial": number, "why": str(problem)})
            return
        if version is None:
            await self._of(trials.give_up, number)
            await asyncio.to_thread(self._clear, name)
            await _say(trap, {"event": "pruned", "trial": number})
            return
        value = _metric_of(version, self._metric)
        if value is None:
            why = (
                f"metric: the finetune's evaluation gives no {self._metric}; it gives "
                f"{', '.join(sorted(version.metrics)) or 'none: hold rows out by eval_share'}"
            )
            await self._of(trials.fail, number, why)
            raise SyscallError("invalid", why, field="metric")
        await self._of(trials.finish, number, value)
        best = await self._of(trials.best)
        await _say(
            trap,
            {"event": "tried", "trial": number, self._metric: value, "best": best and best[1]},
        )

    async def _finetuned(
        self, trap: Trap, trials: Trials, number: int, settings: JsonObject
    ) -> ModelVersion | None:
        """A trial's version; None for one that was given up."""
        call = _with(self._call.finetune, {**settings, "name": self._trial_name(number)})
        pid = (await trap.call(call)).pid
        self._running.add(pid)
        watching = asyncio.ensure_future(self._watch(trials, number, pid))
        try:
            exited: Exited = await trap.call(calls.Wait(pid=pid))
            self._running.discard(pid)
            is_given_up = await watching
        finally:
            if not watching.done():
                watching.cancel()
        if is_given_up and exited.status != "ok":
            return None
        return ModelVersion.model_validate(exited.unwrap()["version"])

    async def _watch(self, trials: Trials, number: int, pid: int) -> bool:
        """Follow a trial's evaluations; True when it was told to end for want of promise."""
        rest = b""
        async with aclosing(self._machinery.output(pid)) as output:  # pyright: ignore[reportArgumentType]
            async for data in output:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    event: JsonObject = json.loads(line)
                    if (found := _progress(event, self._metric)) is None:
                        continue
                    step, value = found
                    if await self._of(trials.is_hopeless, number, step, value):
                        self._machinery.end(pid)
                        return True
        return False

    async def _of(self, ask: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """What the trials answer, off the event loop and one question at a time."""
        async with self._turn:
            return await asyncio.to_thread(ask, *args, **kwargs)

    def _trial_name(self, number: int) -> str:
        return f"{self.name}-{number}"

    def _clear(self, trial: str) -> None:
        """Remove the job's folder of a trial that is not gone on with: it may have checkpoints."""
        shutil.rmtree(self._machinery.home / "jobs" / trial, ignore_errors=True)

    def _registered(self, name: str) -> ModelVersion | None:
        return next((one for one in self._machinery.registry().list() if one.name == name), None)

    # --- the end ----------------------------------------------------------------------------------

    async def _summed_up(self, trials: Trials) -> Searched:
        best, finished = await self._of(trials.best), await self._of(trials.finished)
        if best is None:
            why = next((one.why for one in reversed(finished) if one.why), "all were given up")
            raise SyscallError(
                "failed", f"none of {len(finished)} trials ran to its end; the last: {why}"
            )
        number, value = best
        settings = next(one.settings for one in finished if one.number == number)
        found = Searched(
            best=self._trial_name(number),
            settings=settings,
            metric=self._metric,
            value=value,
            trials=tuple(finished),
        )
        await asyncio.to_thread(self._discard_others, found)
        page = await self._of(self._write_report, found, trials)
        return found.model_copy(update={"report": str(page)})

    def _discard_others(self, found: Searched) -> None:
        registry = self._machinery.registry()
        known = {version.name for version in registry.list()}
        for trial in found.trials:
            name = self._trial_name(trial.number)
            if name != found.best and name in known:
                try:
                    registry.remove(name)
                except SyscallError as problem:
                    if problem.code != "busy":
                        raise
                    continue  # somebody found a use for it: it stays
                self._clear(name)

    def _write_report(self, found: Searched, trials: Trials) -> Path:
        parts = search_parts(found, trials.plots())
        return write_pages(self._folder, f"Search: {self.name}", parts)


# --- settings and metrics -------------------------------------------------------------------------


def _space(call: calls.Search) -> dict[str, Range | Choices]:
    return {name: _values(name, values) for name, values in call.space.items()}


def _values(name: str, values: Between | OneOf) -> Range | Choices:
    if isinstance(values, OneOf):
        return Choices(values.values)
    kinds = _kinds(calls.Finetune.model_fields[name].annotation)
    is_whole = int in kinds and float not in kinds
    return Range(values.low, values.high, is_log=values.is_log, is_whole=is_whole)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The types that a field may have."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if is_union else (annotation,)


def _first(values: Range | Choices) -> Any:
    if isinstance(values, Choices):
        return values.values[0]
    return round(values.low) if values.is_whole else values.low


def _last(values: Range | Choices) -> Any:
    if isinstance(values, Choices):
        return values.values[-1]
    return round(values.high) if values.is_whole else values.high


def _with(finetune: calls.Finetune, settings: JsonObject) -> calls.Finetune:
    """The finetune with other settings. Raises: SyscallError("invalid") naming the field."""
    return calls.Finetune.model_validate({**finetune.model_dump(), **settings})


def _progress(event: JsonObject, metric: str) -> tuple[int, float] | None:
    """Step and metric of an evaluation in the course of training."""
    if event.get("event") != "eval":
        return None
    value = event.get("metrics", event).get(metric)
    step = event.get("step")
    if not isinstance(step, int) or not isinstance(value, int | float):
        return None
    return step, float(value)


def _metric_of(version: ModelVersion, metric: str) -> float | None:
    """A metric among those of a version, which may say what rows it is of."""
    for name in (metric, f"eval_{metric}", f"dev_{metric}", f"eval_{metric}_after"):
        if name in version.metrics:
            return version.metrics[name]
    return None


async def _say(trap: Trap, event: JsonObject) -> None:
    line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
    await trap.call(calls.Write(fd=1, data=line))
