"""Joined task models: the router sends a text to the adapter that learnt its kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmos.drivers.rows.kinds import LabelledRow
from llmos.drivers.task_folder import read_task
from llmos.drivers.task_model import TaskModel
from llmos.drivers.training import classify
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.joining import Part, fit_router, join
from llmos.drivers.training.objectives import Rows
from llmos.syscalls.errors import SyscallError


def part(name: str, texts: tuple[str, ...], tiny_bert: Path, folder: Path, **fields: Any) -> Part:
    rows = [
        LabelledRow(" ".join([text] * (1 + n % 3)), f"is {text}", f"{text} {n}")
        for n in range(6)
        for text in texts
    ]
    job = TrainJob(base=str(tiny_bert), output="", method="lora", max_length_tokens=16, **fields)
    built = classify.build(job, "cpu", Rows(rows, (), ()))
    items = built.task.encode(rows).items
    optimizer = torch.optim.AdamW([p for p in built.model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(20):
        loss, weight = built.task.loss(built.model, items)
        optimizer.zero_grad()
        (loss / weight).backward()
        optimizer.step()
    folder.mkdir()
    built.save(folder)
    return Part(name, folder, rows)


def test_each_text_is_answered_by_the_adapter_of_its_kind(tiny_bert: Path, tmp_path: Path) -> None:
    parts = [
        part("first", ("alpha", "beta"), tiny_bert, tmp_path / "first"),
        part("second", ("gamma", "other"), tiny_bert, tmp_path / "second"),
    ]
    joined = tmp_path / "joined"
    joined.mkdir()
    join(parts, tiny_bert, joined)
    assert [head.name for head in read_task(joined).heads] == ["first", "second"]
    model = TaskModel(joined, tiny_bert)
    assert model.labels == ("is alpha", "is beta", "is gamma", "is other")
    texts = ["alpha", "gamma gamma", "beta", "other", "alpha alpha"]
    assert [route.head for route in model.route(texts)] == [0, 1, 0, 1, 0]
    found = model.classify(texts)
    assert [row.index(max(row)) for row in found] == [0, 2, 1, 3, 0]
    alone = TaskModel(parts[0].folder, tiny_bert).classify(["alpha"])[0]
    assert model.classify(["alpha"], task="first")[0] == pytest.approx(alone, abs=1e-5)
    assert found[0] == pytest.approx([*alone, 0.0, 0.0], abs=1e-5)


def test_only_adapters_on_one_base_are_joined(tiny_bert: Path, tmp_path: Path) -> None:
    one = part("first", ("alpha", "beta"), tiny_bert, tmp_path / "first", base_name="a")
    other = part("second", ("alpha", "beta"), tiny_bert, tmp_path / "second", base_name="b")
    with pytest.raises(SyscallError, match="second cannot be joined"):
        join([one, other], tiny_bert, tmp_path)


def test_a_router_knows_the_spread_of_classes() -> None:
    torch.manual_seed(0)
    wide = torch.tensor([1.0, 0.1, 0.1, 0.1])  # a direction that says nothing
    middles = torch.eye(4)[1:3].repeat_interleave(50, dim=0)
    vectors = torch.nn.functional.normalize(middles + wide * torch.randn(100, 4), dim=1)
    router = fit_router(vectors, ["0 a"] * 50 + ["1 b"] * 50)
    assert (
        sum(a == b for a, b in zip(router.choose(vectors), [0] * 50 + [1] * 50, strict=True)) > 95
    )
