"""Searches over finetunes that are computed by a formula instead of trained."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos.kernel.kernel import Kernel
from llmos.kernel.search import Machinery, SearchJob
from llmos.memory.registry import Registry
from llmos.syscalls import calls
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.evaluation import Between, OneOf
from llmos.syscalls.evaluation_results import Searched
from llmos.syscalls.learning_results import ModelVersion, Trained
from llmos.syscalls.values import JsonObject

ROWS = ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},)
SPACE = {"rank": Between(low=2, high=16), "dropout": OneOf(values=(0.0, 0.5))}


class Formula:
    """Jobs whose loss is the distance of the rank from 7, told twice on the way.

    A rank in `broken` fails. `held` keeps jobs of these names from ending until they are cancelled;
    `began` is set when all of them wait.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.broken: set[int] = set()
        self.held: set[str] = set()
        self.pinned = ""
        self._waiting: set[str] = set()
        self.names: list[str] = []
        self.began = asyncio.Event()

    async def finetune(
        self,
        call: calls.Finetune,
        *,
        on_progress: Callable[[JsonObject], None],
        nice: int,
        pid: int,
    ) -> Trained:
        self.names.append(call.name)
        loss = abs(call.rank - 7) + call.dropout
        if call.rank in self.broken:
            raise SyscallError("failed", f"no memory for rank {call.rank}")
        for step in (1, 2):
            metrics = {"loss": loss + 1 / step}
            on_progress({"event": "eval", "when": "dev", "step": step, "metrics": metrics})
            await asyncio.sleep(0)
        if call.name in self.held:
            self._waiting.add(call.name)
            if self._waiting == self.held:
                self.began.set()
            await asyncio.Event().wait()
        version = ModelVersion(name=call.name, kind="prompt", base="b", metrics={"eval_loss": loss})
        version = self.registry.add(version)
        if call.name == self.pinned:
            self.registry.pin(call.name)
        return Trained(version=version, losses=())

    def stop(self, name: str) -> None: ...

    def resume(self, name: str) -> None: ...


Body = Callable[[Kernel, Formula], Any]


@pytest.fixture
def scene(boot_kernel: Any) -> Callable[[Body], Any]:
    def run(body: Body) -> Any:
        async def scenario() -> Any:
            async with boot_kernel() as kernel:
                jobs = Formula(kernel.registry())
                kernel.learning._jobs = jobs
                return await body(kernel, jobs)

        return asyncio.run(scenario())

    return run


def finetune(**settings: Any) -> calls.Finetune:
    return calls.Finetune(data=ROWS, name="best", **settings)


async def searched(kernel: Kernel, **options: Any) -> Searched:
    pid = await kernel.os.search(finetune(), options.pop("space", SPACE), **options)
    return Searched.model_validate(await kernel.os.result(pid))


def test_a_search_keeps_the_best_version_alone(scene: Any, tmp_path: Path) -> None:
    async def body(kernel: Kernel, jobs: Formula) -> None:
        found = await searched(kernel, trials=12)
        assert len(found.trials) == len(jobs.names) == 12
        done = [one for one in found.trials if one.state == "done"]
        assert found.value == min(one.value for one in done if one.value is not None)
        assert found.metric == "loss"
        assert isinstance(found.settings["rank"], int)
        assert [version.name for version in kernel.registry().list()] == [found.best]
        assert found.report == str(tmp_path / "searches" / "best" / "report.html")

    scene(body)
    page = (tmp_path / "searches" / "best" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 3


def test_trials_leave_no_folders_and_one_that_is_needed_stays(scene: Any, tmp_path: Path) -> None:
    async def body(kernel: Kernel, jobs: Formula) -> None:
        for number in range(12):
            (tmp_path / "jobs" / f"best-{number}" / "checkpoints").mkdir(parents=True)
        (tmp_path / "jobs" / "other").mkdir()
        jobs.pinned = "best-1"
        found = await searched(kernel, trials=12)
        kept = {"other", found.best, "best-1"}
        assert {path.name for path in (tmp_path / "jobs").iterdir()} == kept
        assert {one.name for one in kernel.registry().list()} == {found.best, "best-1"}

    scene(body)


def test_trials_are_processes_of_the_search_and_may_run_side_by_side(scene: Any) -> None:
    async def body(kernel: Kernel, jobs: Formula) -> None:
        jobs.held = {"best-0", "best-1"}
        pid = await kernel.os.search(finetune(), SPACE, trials=2, parallel=2)
        await jobs.began.wait()
        shown = {one.pid: one for one in await kernel.os.ps()}
        children = [one for one in shown.values() if one.parent == pid]
        assert shown[pid].program == "search"
        assert [one.program for one in children] == ["finetune", "finetune"]
        await kernel.os.signal(pid, "TERM")
        assert (await kernel.os.wait(pid)).status == "killed"

    scene(body)


def test_an_interrupted_search_goes_on_with_the_trial_it_was_at(scene: Any) -> None:
    async def body(kernel: Kernel, jobs: Formula) -> None:
        jobs.held = {"best-1"}
        pid = await kernel.os.search(finetune(), SPACE, trials=3)
        await jobs.began.wait()
        await kernel.os.signal(pid, "TERM")
        await kernel.os.wait(pid)
        jobs.held = set()
        found = await searched(kernel, trials=3)
        assert jobs.names == ["best-0", "best-1", "best-1", "best-2"]
        assert [one.number for one in found.trials] == [0, 1, 2]

    scene(body)


def test_a_trial_that_fails_is_named_and_the_search_goes_on(scene: Any) -> None:
    async def body(kernel: Kernel, jobs: Formula) -> None:
        jobs.broken = {2, 3}
        space = {"rank": OneOf(values=(2, 3, 7))}
        found = await searched(kernel, trials=12, space=space)
        assert found.settings == {"rank": 7}
        failed = [one for one in found.trials if one.state == "failed"]
        assert failed
        assert "no memory" in failed[0].why

    scene(body)


def test_a_search_of_which_nothing_succeeds_fails_with_the_reason(scene: Any) -> None:
    async def body(kernel: Kernel, jobs: Formula) -> None:
        jobs.broken = {2, 3}
        with pytest.raises(SyscallError, match=r"none of 2 trials.*no memory"):
            await searched(kernel, trials=2, space={"rank": Between(low=2, high=3)})

    scene(body)


def test_a_metric_that_is_not_measured_is_refused_at_the_first_trial(scene: Any) -> None:
    async def body(kernel: Kernel, jobs: Formula) -> None:
        with pytest.raises(SyscallError, match="gives no f1; it gives eval_loss"):
            await searched(kernel, metric="f1")
        assert jobs.names == ["best-0"]

    scene(body)


def test_a_space_that_fits_no_finetune_is_refused(scene: Any) -> None:
    async def body(kernel: Kernel, jobs: Formula) -> None:
        with pytest.raises(SyscallError, match="has no such setting to vary"):
            await kernel.os.search(finetune(), {"rnk": Between(low=1, high=2)})
        with pytest.raises(SyscallError, match="rank"):
            await searched(kernel, space={"rank": Between(low=0, high=4)})
        with pytest.raises(SyscallError, match="below"):
            calls.Search.model_validate(
                {"finetune": finetune(), "space": {"rank": {"low": 2, "high": 1}}}
            )
        assert jobs.names == []

    scene(body)


def test_more_is_better_of_all_but_losses() -> None:
    def direction(**options: Any) -> bool:
        call = calls.Search(finetune=finetune(), space=SPACE, **options)
        return SearchJob(Machinery(Any, Any, Any, Path()), call)._is_higher_better  # pyright: ignore[reportArgumentType]

    assert not direction()
    assert direction(metric="exact_match")
    assert not direction(metric="eval.loss")
    assert direction(metric="loss", is_higher_better=True)
