"""What a job takes from other versions: adapters to join, rows to replay."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.task_model import TaskModel
from llmos.kernel.learn import Base, LearnJobs
from llmos.memory.registry import Registry
from llmos.syscalls.calls import Finetune
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ModelVersion
from llmos.syscalls.values import JsonObject


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path / "models")
    yield registry
    registry.close()


@pytest.fixture
def jobs(tmp_path: Path, registry: Registry, tiny_bert: Path) -> LearnJobs:
    return LearnJobs(
        folder=tmp_path / "jobs",
        registry=registry,
        resolve_base=lambda name, objective: Base(name or "tiny", tiny_bert),
        threads=1,
    )


def of_words(name: str, *words: str, **settings: Any) -> Finetune:
    """A job that learns to tell words apart."""
    rows = [
        {"text": " ".join([word] * (1 + n % 3)), "label": f"is {word}"}
        for n in range(4)
        for word in words
    ]
    given = {
        "objective": "classify",
        "max_length_tokens": 16,
        "method": "lora",
        "eval_share": 0.0,
        "epochs": 5,
        "learning_rate": 0.01,
        **settings,
    }
    return Finetune(name=name, data=rows, **given)


async def refused(jobs: LearnJobs, call: Finetune) -> SyscallError:
    with pytest.raises(SyscallError) as error:
        await jobs.finetune(call, on_progress=lambda _: None)
    return error.value


def test_a_finetune_joins_its_adapter_to_earlier_ones(
    jobs: LearnJobs, registry: Registry, tiny_bert: Path
) -> None:
    refusals: list[str] = []

    def hear(event: JsonObject) -> None:
        if event["event"] == "start":
            with pytest.raises(SyscallError) as error:
                registry.remove("old")
            refusals.append(error.value.message)

    async def run() -> ModelVersion:
        await jobs.finetune(of_words("old", "alpha", "beta"), on_progress=lambda _: None)
        call = of_words("desk", "gamma", "other", join=("old",))
        return (await jobs.finetune(call, on_progress=hear)).version

    version = asyncio.run(run())
    assert (version.kind, version.base, version.parent) == ("task", "tiny", "old")
    assert version.card["settings"]["join"] == ["old"]
    assert refusals[0].startswith("old is used now by process 1")
    model = TaskModel(registry.load("desk"), tiny_bert)
    assert [head.name for head in model.heads] == ["old", "desk"]
    texts = ["gamma", "alpha", "beta beta", "other"]
    said = [model.labels[row.index(max(row))] for row in model.classify(texts)]
    assert said == ["is gamma", "is alpha", "is beta", "is other"]


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"join": ("nobody",)}, "unknown_model", "no version nobody"),
        ({"join": ("elsewhere",)}, "invalid", "elsewhere is a version of kind task on other"),
        ({"join": ("chat",)}, "invalid", "chat is a version of kind adapter"),
        ({"join": ("here", "here")}, "invalid", "a version comes twice"),
        ({"join": ("here",), "method": "full"}, "invalid", "the method lora"),
        ({"join": ("here",), "base": "here"}, "invalid", "base: with join"),
    ],
)
def test_what_cannot_be_joined_is_refused_before_anything_is_trained(
    jobs: LearnJobs, registry: Registry, tmp_path: Path, settings: Any, code: str, message: str
) -> None:
    registry.add(ModelVersion(name="elsewhere", kind="task", base="other"))
    registry.add(ModelVersion(name="chat", kind="adapter", base="tiny"))
    made = tmp_path / "made"
    made.mkdir()
    (made / "task.json").write_text("{}")
    registry.add(ModelVersion(name="here", kind="task", base="tiny", path=str(made)))
    error = asyncio.run(refused(jobs, of_words("desk", "gamma", "other", **settings)))
    assert error.code == code
    assert message in error.message
