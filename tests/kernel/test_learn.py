from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from llmos.drivers.contract import Feed, ModelSpec
from llmos.drivers.rows.kinds import ChatRow
from llmos.drivers.rows.reading import read_rows
from llmos.drivers.rows.splits import split
from llmos.drivers.torch_lm import TorchLM
from llmos.kernel.learn import Base, LearnJobs
from llmos.memory.registry import Registry
from llmos.syscalls.calls import Evaluate, Example, Finetune
from llmos.syscalls.content import assistant, user
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import ChoiceConstraint, Sampling
from llmos.syscalls.results import ModelVersion, Trained
from llmos.syscalls.values import JsonObject

# peft asks transformers for a property by its old name.
BANKING77 = Path(__file__).parent.parent / "data" / "banking77_small.jsonl"
PARITY = tuple(
    Example(messages=(user(str(n)), assistant("even" if n % 2 == 0 else "odd"))) for n in range(12)
)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path / "models")
    yield registry
    registry.close()


def jobs_in(home: Path, registry: Registry, model: Path, base: str = "tiny") -> LearnJobs:
    """Jobs on one thread: two that wait for each other crawl when the machine has other work."""
    return LearnJobs(
        folder=home / "jobs",
        registry=registry,
        resolve_base=lambda name, objective: Base(name or base, model),
        threads=1,
    )


@pytest.fixture
def jobs(tmp_path: Path, registry: Registry, tiny_model_path: Path) -> LearnJobs:
    return jobs_in(tmp_path, registry, tiny_model_path)


def parity(name: str = "parity", **settings: Any) -> Finetune:
    given = {"data": PARITY, "epochs": 5, "learning_rate": 1e-2, "eval_share": 0.25, **settings}
    return Finetune(name=name, **given)


def endless(name: str = "endless") -> Finetune:
    return parity(name, epochs=1_000_000)


async def refused(jobs: LearnJobs, call: Finetune | Evaluate) -> SyscallError:
    with pytest.raises(SyscallError) as error:
        if isinstance(call, Finetune):
            await jobs.finetune(call, on_progress=lambda _: None)
        else:
            await jobs.evaluate(call)
    return error.value


class Running:
    """A finetune as a task, with its events as they come."""

    def __init__(self, jobs: LearnJobs, call: Finetune) -> None:
        self.kinds: list[str] = []
        self._waiting: dict[str, asyncio.Event] = {}
        self.task = asyncio.ensure_future(jobs.finetune(call, on_progress=self._hear))

    def _hear(self, event: JsonObject) -> None:
        self.kinds.append(event["event"])
        self._heard(event["event"]).set()

    def _heard(self, kind: str) -> asyncio.Event:
        return self._waiting.setdefault(kind, asyncio.Event())

    async def until(self, kind: str) -> None:
        await self._heard(kind).wait()


# --- jobs that several tests look at: a worker takes seconds to start -----------------------------


class Learnt(NamedTuple):
    """A finetune that came to its end; tests may train further versions, and change none."""

    home: Path
    registry: Registry
    jobs: LearnJobs
    data: Path
    trained: Trained
    kinds: list[str]  # of its events


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, tiny_model_path: Path) -> Iterator[Learnt]:
    home = tmp_path_factory.mktemp("learnt")
    data = home / "parity.jsonl"
    data.write_text("".join(row.model_dump_json() + "\n" for row in PARITY), encoding="utf-8")
    registry = Registry(home / "models")
    jobs = jobs_in(home, registry, tiny_model_path)

    async def run() -> Learnt:
        running = Running(jobs, parity(data=str(data)))
        return Learnt(home, registry, jobs, data, await running.task, running.kinds)

    yield asyncio.run(run())
    registry.close()


# Of a run that is killed, and of the same run undisturbed.
CHECKED = {"epochs": 6, "checkpoint_steps": 4, "dropout": 0.1}


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_path: Path
) -> Iterator[Trained]:
    home = tmp_path_factory.mktemp("undisturbed")
    registry = Registry(home / "models")
    jobs = jobs_in(home, registry, tiny_model_path)

    async def run() -> Trained:
        return await Running(jobs, parity("undisturbed", **CHECKED)).task

    yield asyncio.run(run())
    registry.close()


# --- a job from its call to its version -----------------------------------------------------------


def test_a_finetune_registers_an_adapter_that_evaluates_better(learnt: Learnt) -> None:
    trained = learnt.trained
    assert learnt.kinds[:2] == ["start", "eval"]
    assert learnt.kinds[-3:] == ["checkpoint", "eval", "done"]
    evaluated = asyncio.run(learnt.jobs.evaluate(Evaluate(data=PARITY, adapter="parity")))
    assert trained.eval_loss_before is not None
    assert evaluated.loss < trained.eval_loss_before - 0.3
    assert evaluated.perplexity == pytest.approx(math.exp(evaluated.loss))
    assert evaluated.rows == len(PARITY)
    assert trained.eval_loss_after is not None
    assert trained.eval_loss_after < trained.eval_loss_before
    assert [step for step, _ in trained.losses] == list(range(1, len(trained.losses) + 1))
    assert trained.tokens > 0
    version = learnt.registry.get("parity")
    assert version == trained.version
    assert (version.kind, version.base, version.parent) == ("adapter", "tiny", "tiny")
    assert version.path is not None
    assert (Path(version.path) / "adapter_config.json").exists()
    assert version.metrics["eval_loss_after"] == trained.eval_loss_after
    assert version.card["data"]["path"] == str(learnt.data)
    assert version.card["data"]["train_rows"] == 9
    assert version.card["settings"]["rank"] == 8
    assert not list((learnt.home / "jobs").glob(".evaluate-*"))


def test_bad_rows_of_a_call_are_refused_by_row_and_field(
    jobs: LearnJobs, registry: Registry
) -> None:
    bad = (*PARITY, Example(messages=(user("13"),)))

    async def run() -> None:
        for call in (parity(data=bad), Evaluate(data=bad)):
            error = await refused(jobs, call)
            assert error.code == "invalid"
            assert error.message.startswith("row 13: messages.0.role: ")
            assert error.fields["field"] == "messages.0.role"
        missing = await refused(jobs, parity(data="/none/rows.jsonl"))
        assert (missing.code, missing.fields["name"]) == ("not_found", "/none/rows.jsonl")

    asyncio.run(run())
    assert registry.list() == []


def test_what_cannot_be_trained_is_refused_with_the_reason(jobs: LearnJobs) -> None:
    async def run() -> None:
        prompt = await refused(jobs, parity(method="prompt"))
        assert (prompt.code, prompt.fields["field"]) == ("not_available", "method")
        quantised = await refused(jobs, parity(method="qlora", device="cpu"))
        assert quantised.code == "not_available"
        assert "CUDA" in quantised.message

    asyncio.run(run())


def test_a_name_in_use_is_refused_before_any_training(
    jobs: LearnJobs, registry: Registry, tmp_path: Path
) -> None:
    registry.add(ModelVersion(name="taken", kind="adapter", base="tiny"))
    error = asyncio.run(refused(jobs, parity("taken")))
    assert (error.code, error.fields) == ("invalid", {"field": "name"})
    assert not (tmp_path / "jobs" / "taken").exists()


def test_an_adapter_is_evaluated_on_its_own_base_only(jobs: LearnJobs, registry: Registry) -> None:
    registry.add(ModelVersion(name="others", kind="adapter", base="other"))

    async def run() -> None:
        wrong = await refused(jobs, Evaluate(data=PARITY, model="tiny", adapter="others"))
        assert (wrong.code, wrong.fields) == ("invalid", {"field": "adapter"})
        unknown = await refused(jobs, Evaluate(data=PARITY, adapter="nobody's"))
        assert unknown.code == "unknown_model"

    asyncio.run(run())


# --- signals --------------------------------------------------------------------------------------


def test_a_job_stops_goes_on_and_when_cancelled_keeps_its_adapter_unregistered(
    jobs: LearnJobs, registry: Registry, tmp_path: Path
) -> None:
    async def run() -> list[str]:
        jobs.stop("nobody")  # without effect
        running = Running(jobs, endless())
        await running.until("progress")
        (worker,) = psutil.Process().children()
        jobs.stop("endless")
        await asyncio.to_thread(os.waitid, os.P_PID, worker.pid, os.WSTOPPED)
        jobs.resume("endless")
        assert worker.status() != psutil.STATUS_STOPPED
        jobs.stop("endless")
        running.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running.task
        assert not worker.is_running()
        return running.kinds

    assert asyncio.run(run())[-2:] == ["checkpoint", "cancelled"]
    assert (tmp_path / "jobs" / "endless" / "version" / "adapter_model.safetensors").exists()
    assert registry.list() == []


def test_one_job_trains_at_a_time_and_one_that_fails_lets_the_next_train(
    jobs: LearnJobs, registry: Registry, tmp_path: Path
) -> None:
    async def run() -> SyscallError:
        first = Running(jobs, endless("first"))
        await first.until("progress")
        assert (await refused(jobs, parity("first"))).code == "busy"
        second = Running(jobs, parity("second", max_steps=1))
        await second.until("queued")
        assert second.kinds == ["queued"]
        (worker,) = psutil.Process().children()
        worker.terminate()
        with pytest.raises(SyscallError) as failed:
            await first.task
        assert (await second.task).version.name == "second"
        return failed.value

    error = asyncio.run(run())
    assert error.code == "failed"
    assert error.fields["path"] == str(tmp_path / "jobs" / "first" / "version")
    assert [version.name for version in registry.list()] == ["second"]


# --- an end before the end ------------------------------------------------------------------------


def weights_of(version: ModelVersion) -> bytes:
    assert version.path is not None
    return (Path(version.path) / "adapter_model.safetensors").read_bytes()


def test_a_worker_that_is_killed_starts_again_from_its_checkpoint(
    jobs: LearnJobs, tmp_path: Path, undisturbed: Trained
) -> None:
    async def run() -> Trained:
        running = Running(jobs, parity("killed", **CHECKED))
        await running.until("checkpoint")
        (worker,) = psutil.Process().children()
        worker.kill()
        killed = await running.task
        assert "restarted" in running.kinds
        assert "resumed" in running.kinds
        return killed

    killed = asyncio.run(run())
    assert weights_of(killed.version) == weights_of(undisturbed.version)
    assert killed.losses == undisturbed.losses
    assert killed.eval_loss_before == undisturbed.eval_loss_before
    assert not (tmp_path / "jobs" / "killed" / "checkpoints").exists()


def test_a_worker_that_is_killed_over_and_over_is_given_up(jobs: LearnJobs) -> None:
    async def run() -> tuple[SyscallError, list[str]]:
        running = Running(jobs, endless())
        await running.until("start")  # the others are killed before they come to it
        killed: set[int] = set()
        while not running.task.done():
            for worker in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
                    killed.add(worker.pid)
            await asyncio.sleep(0)
        with pytest.raises(SyscallError) as given_up:
            await running.task
        assert len(killed) >= 4
        return given_up.value, running.kinds

    error, kinds = asyncio.run(run())
    assert (error.code, error.fields["status"]) == ("failed", -9)
    assert kinds.count("restarted") == 3


def test_the_same_call_goes_on_and_another_one_of_that_name_says_what_differs(
    jobs: LearnJobs, registry: Registry
) -> None:
    settings = {"epochs": 6, "checkpoint_steps": 2}

    async def run() -> None:
        cancelled = Running(jobs, parity("cut", **settings))
        await cancelled.until("checkpoint")
        cancelled.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled.task
        other = await refused(jobs, parity("cut", **{**settings, "rank": 4}))
        assert other.code == "invalid"
        assert other.fields["differing"] == ["rank was 8 and is 4"]
        fewer = await refused(jobs, parity("cut", **settings, data=PARITY[:-1]))
        assert "data was" in fewer.message
        again = Running(jobs, parity("cut", **settings))
        trained = await again.task
        assert "resumed" in again.kinds
        assert [step for step, _ in trained.losses] == list(range(1, len(trained.losses) + 1))

    asyncio.run(run())
    assert registry.get("cut").card["settings"]["rank"] == 8


KERNEL = """
import asyncio, sys
from pathlib import Path
from llmos.kernel.learn import Base, LearnJobs
from llmos.memory.registry import Registry
from llmos.syscalls.calls import Finetune

home, model, call = Path(sys.argv[1]), Path(sys.argv[2]), Finetune.model_validate_json(sys.argv[3])
jobs = LearnJobs(
    folder=home / "jobs",
    registry=Registry(home / "models"),
    resolve_base=lambda name, objective: Base("tiny", model),
    threads=1,
)
print("up", flush=True)
trained = asyncio.run(
    jobs.finetune(call, on_progress=lambda event: print(event["event"], flush=True))
)
print(trained.version.path, flush=True)
"""


def test_a_kernel_that_is_killed_loses_no_training(
    tiny_model_path: Path, tmp_path: Path, undisturbed: Trained
) -> None:
    def kernel() -> subprocess.Popen[str]:
        call = parity("job", **CHECKED).model_dump_json()
        command = [sys.executable, "-c", KERNEL, str(tmp_path), str(tiny_model_path), call]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def lines(process: subprocess.Popen[str]) -> list[str]:
        assert process.stdout is not None
        return [line.strip() for line in process.stdout]

    with kernel() as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "checkpoint":
                break
        process.kill()
        lines(process)  # ends only once the worker is gone too
    with kernel() as process:
        told = lines(process)
    assert "resumed" in told
    weights = Path(told[-1]) / "adapter_model.safetensors"
    assert weights.read_bytes() == weights_of(undisturbed.version)


def test_a_version_is_what_another_job_goes_on_from(learnt: Learnt) -> None:
    second = parity("second", base="parity", max_steps=2)
    trained = asyncio.run(learnt.jobs.finetune(second, on_progress=lambda _: None))
    assert (trained.version.base, trained.version.parent) == ("tiny", "parity")
    assert trained.eval_loss_before == pytest.approx(
        learnt.registry.get("parity").metrics["eval_loss_after"], rel=1e-4
    )


def test_a_new_model_is_its_own_base_and_another_job_goes_on_from_it(jobs: LearnJobs) -> None:
    texts = tuple(
        {"text": f"the cat sat on the mat {n} times and then left. " * 3} for n in range(6)
    )
    settings = {"objective": "pretrain", "method": "full", "eval_share": 0.2, "data": texts}
    scratch = {"vocabulary": 300, "width": 16, "layers": 1, "heads": 2}

    async def run() -> list[Trained]:
        call = Finetune(name="new", scratch=scratch, max_length_tokens=32, **settings)
        new = await jobs.finetune(call, on_progress=lambda _: None)
        more = Finetune(name="more", base="new", max_length_tokens=32, **settings)
        trained = [new, await jobs.finetune(more, on_progress=lambda _: None)]
        beside = more.model_copy(update={"name": "beside", "base": "more", "method": "lora"})
        trained.append(await jobs.finetune(beside, on_progress=lambda _: None))
        scored = await jobs.evaluate(Evaluate(data=texts, objective="pretrain", adapter="beside"))
        assert scored.loss is not None
        return trained

    new, more, beside = (trained.version for trained in asyncio.run(run()))
    assert (new.kind, new.base, new.parent) == ("full", "new", None)
    assert (more.kind, more.base, more.parent) == ("full", "new", "new")
    assert (beside.kind, beside.base, beside.parent) == ("adapter", "more", "more")


def test_what_a_job_goes_on_from_is_not_deleted_and_its_own_name_is_free_when_it_is_gone(
    jobs: LearnJobs, registry: Registry
) -> None:
    async def run() -> None:
        await jobs.finetune(parity("parent", max_steps=1), on_progress=lambda _: None)
        child = Running(jobs, endless("child").model_copy(update={"base": "parent"}))
        await child.until("start")
        with pytest.raises(SyscallError, match="parent is used now by process 1"):
            registry.remove("parent")
        child.task.cancel()
        await asyncio.wait((child.task,))
        registry.remove("parent")
        again = parity("parent", max_steps=1, rank=4)
        await jobs.finetune(again, on_progress=lambda _: None)

    asyncio.run(run())


def test_a_card_has_what_it_takes_to_train_the_same_again(learnt: Learnt) -> None:
    first = learnt.trained
    recipe = first.version.card["settings"]
    call = Finetune(name="two", data=first.version.card["data"]["path"], **recipe)
    again = asyncio.run(learnt.jobs.finetune(call, on_progress=lambda _: None))
    assert weights_of(first.version) == weights_of(again.version)
    assert first.version.data_hashes == again.version.data_hashes
    assert set(first.version.data_hashes) == {"train"}
    code = first.version.card["code"]
    assert code == again.version.card["code"]
    assert {"llmos", "torch", "training_sha256"} <= set(code)


# --- real data, real model ------------------------------------------------------------------------


@pytest.mark.model
def test_a_few_steps_on_real_data_lower_the_held_out_loss_here_and_where_it_serves(
    tmp_path: Path, registry: Registry, smollm2_path: Path
) -> None:
    jobs = jobs_in(tmp_path, registry, smollm2_path, "smollm2")
    call = Finetune(
        name="banking",
        data=str(BANKING77),
        max_steps=8,
        learning_rate=1e-3,
        eval_share=0.05,
    )
    trained = asyncio.run(jobs.finetune(call, on_progress=lambda _: None))
    assert trained.eval_loss_before is not None
    assert trained.eval_loss_after is not None
    assert trained.eval_loss_after < 0.5 * trained.eval_loss_before

    assert trained.version.path is not None
    rows = read_rows(BANKING77, "instruct")
    held_out = split(rows, eval_share=call.eval_share, seed=call.seed).dev
    model = TorchLM(ModelSpec(name="smollm2", path=smollm2_path, context_tokens=256, sequences=1))
    model.attach("banking", Path(trained.version.path))
    for row in held_out[:5]:
        assert first_logprob(model, row, "banking") > first_logprob(model, row, None) + 1
    model.close()


@pytest.mark.model
def test_a_real_model_killed_in_training_ends_with_the_weights_of_an_undisturbed_run(
    tmp_path: Path, registry: Registry, smollm2_path: Path
) -> None:
    jobs = jobs_in(tmp_path, registry, smollm2_path, "smollm2")

    def call(name: str) -> Finetune:
        settings = {"max_steps": 3, "checkpoint_steps": 1, "batch_size": 2, "dropout": 0.1}
        return Finetune(name=name, data=str(BANKING77), eval_share=0.0, **settings)

    async def run() -> tuple[Trained, Trained]:
        undisturbed = await jobs.finetune(call("undisturbed"), on_progress=lambda _: None)
        running = Running(jobs, call("killed"))
        await running.until("checkpoint")
        (worker,) = psutil.Process().children()
        worker.kill()
        killed = await running.task
        assert "resumed" in running.kinds
        return undisturbed, killed

    undisturbed, killed = asyncio.run(run())
    assert weights_of(killed.version) == weights_of(undisturbed.version)


def first_logprob(model: TorchLM, row: ChatRow, adapter: str | None) -> float:
    """The log-probability that the model begins its answer as the row does."""
    forced = ChoiceConstraint(choices=(row.messages[-1].text,))
    model.add(0, sampling=Sampling(logprobs=0), constraint=forced, adapter=adapter)
    (sampled,) = model.step([Feed(0, model.render(row.messages[:-1]), sample=True)])
    model.trim(0, 0)
    assert sampled.logprob is not None
    return sampled.logprob
