"""The loop's decisions: when it trains, what it promotes, when it ends, how it goes on.

The kernel, the processes and the files are real. The registry and the training job are stood in for
at the trap, so that a test says how good each version is.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.agents.learn_plan import make_plan
from llmos.agents.learner import learner
from llmos.kernel.clock import Timer, VirtualClock
from llmos.kernel.kernel import Kernel
from llmos.syscalls import calls
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ModelVersion, ModelVersions, Spawned, Trained

Boot = Callable[..., AbstractAsyncContextManager[Kernel]]
TASKS = 20


class World:
    """How good versions are, what was trained and promoted, and how long training takes."""

    def __init__(self, **success: float) -> None:
        self.success = {"base": 0.0, **success}  # by version
        self.solved = 10  # of the tasks of a round
        self.trained: list[calls.Finetune] = []
        self.versions: dict[str, ModelVersion] = {}
        self.promoted: list[str] = []
        self.practised: list[dict[str, Any]] = []
        self.refusal: SyscallError | None = None
        self.is_training_endless = False
        self.has_begun = asyncio.Event()

    async def practice(self, os: OS, *, split: str, count: int, seed: int, **options: Any) -> Any:
        self.practised.append({"split": split, "seed": seed, **options})
        used = options.get("adapter") or (self.promoted[-1] if self.promoted else None)
        right = self.solved if split == "train" else round(self.success[used or "base"] * count)
        episodes = [
            {
                "task": f"{split} {seed} {number}",
                "kind": f"kind {number % 2}",
                "said": "said",
                "reward": float(number < right),
                "messages": [
                    {"role": "user", "content": "u"},
                    {"role": "assistant", "content": "a"},
                ],
            }
            for number in range(count)
        ]
        return {"episodes": episodes, "tokens": 100, "adapter": used}

    async def training(self, os: OS, name: str) -> Any:
        self.has_begun.set()
        if self.is_training_endless:
            await os.receive()
        (data,) = [one.data for one in self.trained if one.name == name][-1:]
        digest = hashlib.sha256((await os.read_text(str(data))).encode()).hexdigest()
        self.versions[name] = ModelVersion(
            name=name, kind="adapter", base="b", data_hashes={"train": digest}
        )
        return Trained(
            version=self.versions[name], losses=((1, 2.0), (2, 1.0)), tokens=1000
        ).model_dump(mode="json")

    def list(self) -> ModelVersions:
        now = self.promoted[-1] if self.promoted else None
        return ModelVersions(
            models=tuple(
                version.model_copy(update={"is_promoted": name == now})
                for name, version in self.versions.items()
            )
        )

    def promote(self, name: str) -> ModelVersion:
        if self.refusal is not None:
            raise self.refusal
        self.promoted.append(name)
        return self.versions[name]


class Trap:
    """A trap whose calls about learning are answered by the world."""

    def __init__(self, world: World, trap: Any) -> None:
        self._world = world
        self._trap = trap

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trap, name)

    async def call(self, call: Any) -> Any:
        match call:
            case calls.Finetune():
                self._world.trained.append(call)
                program = self._trap.load(self._world.training)
                spawned: Spawned = await self._trap.call(
                    calls.Spawn(program=program, args=(call.name,))
                )
                return spawned
            case calls.ModelList():
                return self._world.list()
            case calls.ModelPromote():
                return self._world.promote(call.name)
            case _:
                return await self._trap.call(call)


class Loop:
    """Runs loops in one folder against one world."""

    def __init__(self, boot: Boot, world: World, folder: Path) -> None:
        self._boot = boot
        self.world = world
        self.folder = folder

    def __call__(self, **plan: Any) -> Any:
        return asyncio.run(self._run(plan))

    async def _run(self, plan: dict[str, Any]) -> Any:
        async with self._boot() as kernel:
            pid = await self.start(kernel, **plan)
            return await kernel.os.result(pid)

    async def start(self, kernel: Kernel, **plan: Any) -> int:
        """Start the program with the world behind its handle."""

        async def program(os: OS) -> Any:
            fields = {"name": "v", "tasks": TASKS, "eval_tasks": TASKS, "min_rows": 5, **plan}
            behind = OS(Trap(self.world, os._trap))  # pyright: ignore[reportPrivateUsage, reportArgumentType]
            practice = os._trap.load(self.world.practice)  # pyright: ignore[reportPrivateUsage]
            return await learner(behind, str(self.folder), practice=practice, **fields)

        return await kernel.os.spawn(program)

    def events(self) -> list[dict[str, Any]]:
        text = (self.folder / "loop.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def verdicts(self) -> list[str]:
        return [event["verdict"] for event in self.events() if event["event"] == "judged"]


@pytest.fixture
def loop(boot_agents: Boot, tmp_path: Path) -> Callable[..., Loop]:
    def make(**success: float) -> Loop:
        return Loop(boot_agents, World(**success), tmp_path / "loop")

    return make


def names(**success: float) -> dict[str, float]:
    """Success by version, which have a dash in their names."""
    return {name.replace("_", "-"): value for name, value in success.items()}


def test_a_better_version_is_promoted_and_reported(loop: Callable[..., Loop]) -> None:
    run = loop(**names(v_1=0.8))
    value = run(rounds=1)
    assert run.world.promoted == ["v-1"]
    assert value["version"] == "v-1"
    assert (value["before"]["value"], value["after"]["value"]) == (0.0, 0.8)
    assert value["why"] == "rounds"
    (call,) = run.world.trained
    assert len(Path(str(call.data)).read_text().splitlines()) == 10
    report = (run.folder / "report.md").read_text()
    assert "| 1 | 20 | 10 | 10 | 10 | 2.00 → 1.00 | v-1 | 80%" in report
    page = (run.folder / "report.html").read_text()
    assert "<svg" in page
    assert "promoted" in page


def test_a_version_that_is_no_better_is_discarded(loop: Callable[..., Loop]) -> None:
    run = loop(**names(base=0.5, v_1=0.5))
    value = run(rounds=1)
    assert run.world.promoted == []
    assert run.verdicts() == ["discarded"]
    assert value["version"] is None
    assert value["after"]["value"] == 0.5


def test_a_version_that_may_be_better_by_chance_is_discarded(loop: Callable[..., Loop]) -> None:
    run = loop(**names(base=0.5, v_1=0.55))
    run(rounds=1)
    assert run.verdicts() == ["discarded"]


def test_a_version_is_measured_against_the_one_in_use(loop: Callable[..., Loop]) -> None:
    run = loop(**names(v_1=0.8, v_2=0.4))
    run(rounds=2)
    assert run.verdicts() == ["promoted", "discarded"]
    assert run.events()[-2]["against"] == "v-1"
    assert run.world.promoted == ["v-1"]


def test_held_out_tasks_are_the_same_for_all_and_tried_in_everyday_ways(
    loop: Callable[..., Loop],
) -> None:
    run = loop(**names(v_1=0.8))
    run(rounds=1)
    measured = [one for one in run.world.practised if one["split"] == "dev"]
    assert [(one["seed"], one.get("adapter")) for one in measured] == [(0, None), (0, "v-1")]
    assert all("worked" not in one and "attempts" not in one for one in measured)


def test_too_little_data_waits_for_the_next_round(loop: Callable[..., Loop]) -> None:
    run = loop(**names(v_2=0.8))
    run(rounds=2, min_rows=15)
    assert run.verdicts() == ["too_little_data", "promoted"]
    (call,) = run.world.trained
    assert call.name == "v-2"
    assert len(Path(str(call.data)).read_text().splitlines()) == 20


def test_what_was_learned_before_is_shown_and_learned_again(loop: Callable[..., Loop]) -> None:
    run = loop(**names(v_1=0.5, v_2=1.0))
    run(rounds=2)
    rounds = [one for one in run.world.practised if one["split"] == "train"]
    assert [len(one["worked"]) for one in rounds] == [0, 10]
    assert rounds[0]["seed"] != rounds[1]["seed"]
    assert len(Path(str(run.world.trained[1].data)).read_text().splitlines()) == 20


def test_a_gate_that_refuses_keeps_what_is_in_use(loop: Callable[..., Loop]) -> None:
    run = loop(**names(v_1=0.8))
    run.world.refusal = SyscallError("refused", "the safety set is worse")
    run(rounds=1)
    assert run.verdicts() == ["refused"]
    assert run.events()[-2]["why"] == "the safety set is worse"


def test_it_learns_from_what_other_agents_did_well(
    loop: Callable[..., Loop], boot_agents: Boot
) -> None:
    run = loop(**names(v_1=0.8))

    async def helper(os: OS, question: str) -> str:
        return (await os.generate(question)).text

    async def main() -> Any:
        async with boot_agents(lambda said: f"answer to {said}") as kernel:
            await kernel.os.trace_consent("anna")
            for number in range(6):
                pid = await kernel.os.spawn(helper, f"question {number}", client="anna")
                await kernel.os.wait(pid)
                await kernel.os.outcome(pid, thumb="up" if number % 2 else "down")
            pid = await run.start(kernel, rounds=1, tasks=0, min_rows=3, traces=["anna"])
            return await kernel.os.result(pid)

    assert asyncio.run(main())["version"] == "v-1"
    (call,) = run.world.trained
    rows = [json.loads(line) for line in Path(str(call.data)).read_text().splitlines()]
    assert [row["task"] for row in rows] == ["question 1", "question 3", "question 5"]
    assert rows[0]["messages"][-1]["content"] == "answer to question 1"
    assert all(one["split"] == "dev" for one in run.world.practised)


class Impatient(VirtualClock):
    """A clock on which every sleep is over at once; it notes how long they were to be."""

    def __init__(self) -> None:
        super().__init__()
        self.sleeps: list[float] = []

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        self.sleeps.append(seconds)
        asyncio.get_running_loop().call_soon(callback)
        return super().call_later(seconds, lambda: None)


def test_rounds_begin_no_nearer_than_the_schedule_says(
    loop: Callable[..., Loop], boot_agents: Boot
) -> None:
    run = loop(**names(v_1=0.5, v_2=1.0))
    clock = Impatient()

    async def main() -> Any:
        async with boot_agents(clock=clock) as kernel:
            pid = await run.start(kernel, rounds=2, every_s=3600.0)
            return await kernel.os.result(pid)

    assert asyncio.run(main())["rounds"] == 2
    (between,) = (seconds for seconds in clock.sleeps if seconds > 1000)
    assert between <= 3600


def test_it_ends_when_nothing_gets_better(loop: Callable[..., Loop]) -> None:
    run = loop(**names(v_1=0.0, v_2=0.0))
    assert run(rounds=9, patience=2)["why"] == "patience"
    assert run.verdicts() == ["discarded", "discarded"]


def test_it_ends_when_the_tokens_are_spent(loop: Callable[..., Loop]) -> None:
    run = loop(**names(v_1=0.5, v_2=1.0))
    value = run(rounds=9, tokens=1250)
    assert value["why"] == "tokens"
    assert run.verdicts() == ["promoted"]
    assert value["version"] == "v-1"


def test_what_was_trained_is_judged_though_the_budget_is_spent(loop: Callable[..., Loop]) -> None:
    run = loop(**names(v_1=0.8))
    assert run(rounds=9, tokens=300)["why"] == "tokens"  # training alone takes 1,000
    assert run.verdicts() == ["promoted"]


def test_collecting_is_cut_when_the_budget_is_spent(loop: Callable[..., Loop]) -> None:
    run = loop()

    async def slow(os: OS, *, split: str, **options: Any) -> Any:
        if split == "train":
            await os.receive()
        return await practice(os, split=split, **options)

    practice, run.world.practice = run.world.practice, slow  # pyright: ignore[reportAttributeAccessIssue]
    assert run(seconds=0.2)["why"] == "seconds"
    assert run.verdicts() == []


def test_it_goes_on_with_a_larger_budget(loop: Callable[..., Loop]) -> None:
    run = loop(**names(v_1=0.5, v_2=1.0))
    run(rounds=1)
    run(rounds=2)
    assert run.world.promoted == ["v-1", "v-2"]
    assert [call.name for call in run.world.trained] == ["v-1", "v-2"]
    measured = [event["version"] for event in run.events() if event["event"] == "measured"]
    assert measured == [None, "v-1", "v-2"]


def test_a_loop_that_was_ended_in_training_goes_on_with_the_same_job(
    loop: Callable[..., Loop], boot_agents: Boot
) -> None:
    run = loop(**names(v_1=0.8))
    run.world.is_training_endless = True

    async def cut() -> tuple[str, list[str]]:
        async with boot_agents() as kernel:
            pid = await run.start(kernel, rounds=1)
            await run.world.has_begun.wait()
            await kernel.os.signal(pid, "TERM")
            ended = await kernel.os.wait(pid)
            left = [info.state for info in await kernel.os.ps() if "training" in info.program]
            return ended.status, left

    status, left = asyncio.run(cut())
    assert status == "killed"
    assert left == ["zombie"]  # a loop that is told to end takes its job with it
    run.world.is_training_endless = False
    run(rounds=1)
    first, second = run.world.trained
    assert first == second
    assert len([one for one in run.world.practised if one["split"] == "train"]) == 1
    assert run.verdicts() == ["promoted"]


def test_a_version_that_was_trained_already_is_not_trained_again(
    loop: Callable[..., Loop],
) -> None:
    run = loop(**names(v_1=0.8))
    run(rounds=1)
    file = run.folder / "loop.jsonl"
    kinds = [event["event"] for event in run.events()]
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[: kinds.index("trained")]))  # a crash before it was noted
    run.world.promoted.clear()
    run(rounds=1)
    assert len(run.world.trained) == 1
    assert run.world.promoted == ["v-1"]


def test_a_version_of_another_loop_is_not_taken_for_its_own(loop: Callable[..., Loop]) -> None:
    run = loop(**names(v_1=0.8))
    run.world.versions["v-1"] = ModelVersion(name="v-1", kind="adapter", base="b")
    with pytest.raises(SyscallError, match="give the loop another name"):
        run(rounds=1)
    assert run.world.promoted == []


def test_a_line_that_was_cut_by_a_crash_is_taken_off(loop: Callable[..., Loop]) -> None:
    run = loop(**names(v_1=0.8))
    run(rounds=1)
    file = run.folder / "loop.jsonl"
    file.write_text(file.read_text() + '{"event":"meas')
    run(rounds=1)
    assert [event["event"] for event in run.events()][-2:] == ["started", "ended"]


def test_a_damaged_line_before_the_last_is_an_error(loop: Callable[..., Loop]) -> None:
    run = loop()
    run.folder.mkdir()
    (run.folder / "loop.jsonl").write_text("nonsense\n{}\n")
    with pytest.raises(SyscallError, match="damaged"):
        run(rounds=1)


def test_another_plan_in_the_same_folder_is_refused(loop: Callable[..., Loop]) -> None:
    run = loop(**names(v_1=0.8))
    run(rounds=1)
    with pytest.raises(SyscallError, match="other temperature"):
        run(rounds=1, temperature=0.5)


def test_an_unknown_field_of_a_plan_is_named_with_the_nearest() -> None:
    with pytest.raises(SyscallError, match="nearest is rounds"):
        make_plan({"practice": "p", "name": "n", "round": 3})


def test_an_unknown_setting_of_the_training_is_told_at_once(loop: Callable[..., Loop]) -> None:
    run = loop()
    with pytest.raises(SyscallError, match="learning_rat"):
        run(settings={"learning_rat": 1.0})
    assert not (run.folder / "loop.jsonl").exists()


def test_a_loop_needs_something_to_learn_from() -> None:
    with pytest.raises(SyscallError, match="traces to learn from"):
        make_plan({"practice": "p", "name": "n", "tasks": 0})
