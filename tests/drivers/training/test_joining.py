"""Joined task models: the router sends a text to the adapter that learnt its kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmos.drivers.contract import DeviceError
from llmos.drivers.rows.kinds import LabelledRow
from llmos.drivers.task_folder import CLASSES, read_task
from llmos.drivers.task_model import TaskModel
from llmos.drivers.training import classify
from llmos.drivers.training.class_sums import class_sums, load_sums
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.joining import Part, fit_router, join
from llmos.drivers.training.objectives import Rows
from llmos.syscalls.errors import SyscallError

FIRST, SECOND = ("alpha", "beta"), ("gamma", "other")


def part(name: str, texts: tuple[str, ...], tiny_bert: Path, home: Path, **fields: Any) -> Part:
    """A trained version in a folder of its name."""
    rows = [
        LabelledRow(" ".join([text] * (1 + n % 3)), f"is {text}", f"{text} {n}")
        for n in range(6)
        for text in texts
    ]
    job = TrainJob.model_validate(
        {
            "base": str(tiny_bert),
            "output": "",
            "method": "lora",
            "max_length_tokens": 16,
            "name": name,
            **fields,
        }
    )
    built = classify.build(job, "cpu", Rows(rows, (), ()))
    items = built.task.encode(rows).items
    optimizer = torch.optim.AdamW([p for p in built.model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(20):
        loss, weight = built.task.loss(built.model, items)
        optimizer.zero_grad()
        (loss / weight).backward()
        optimizer.step()
    folder = home / name
    folder.mkdir()
    built.save(folder)
    return Part(name, folder)


def test_each_text_is_answered_by_the_adapter_of_its_kind(tiny_bert: Path, tmp_path: Path) -> None:
    parts = [
        part("first", FIRST, tiny_bert, tmp_path),
        part("second", SECOND, tiny_bert, tmp_path),
    ]
    joined = tmp_path / "joined"
    joined.mkdir()
    join(parts, joined)
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


def test_a_job_joins_what_it_trains_to_versions_that_may_be_joined_ones(
    tiny_bert: Path, tmp_path: Path
) -> None:
    first = part("first", ("alpha", "other"), tiny_bert, tmp_path)
    both = part(
        "both", ("beta", "alpha beta"), tiny_bert, tmp_path, join=("first",),
        join_folders=(str(first.folder),),
    )  # fmt: skip
    all_three = part(
        "all", ("gamma", "beta gamma"), tiny_bert, tmp_path, join=("both",),
        join_folders=(str(both.folder),),
    )  # fmt: skip
    assert [head.name for head in read_task(all_three.folder).heads] == ["first", "both", "all"]
    model = TaskModel(all_three.folder, tiny_bert)
    texts = ["alpha", "beta", "gamma", "other", "beta gamma", "alpha beta"]
    said = [model.labels[row.index(max(row))] for row in model.classify(texts)]
    assert said == [f"is {text}" for text in texts]
    assert sorted(path.name for path in all_three.folder.iterdir()) == [
        "adapters",
        "classes.safetensors",
        "head.safetensors",
        "task.json",
    ]


def test_a_version_that_goes_on_is_still_found_by_what_its_parent_learnt(
    tiny_bert: Path, tmp_path: Path
) -> None:
    parent = part("parent", FIRST, tiny_bert, tmp_path)
    child = part(
        "child", ("gamma", "alpha"), tiny_bert, tmp_path, parent=str(parent.folder),
        parent_kind="task",
    )  # fmt: skip
    assert read_task(child.folder).labels == ("is alpha", "is beta", "is gamma")
    known = load_sums(child.folder)
    assert known is not None
    assert known.counts.tolist() == [12, 6, 6]
    (parent.folder / CLASSES).unlink()
    orphan = part(
        "orphan", FIRST, tiny_bert, tmp_path, parent=str(parent.folder), parent_kind="task"
    )
    assert load_sums(orphan.folder) is None


def test_what_is_no_adapter_of_classes_on_the_same_base_is_not_joined(
    tiny_bert: Path, tmp_path: Path
) -> None:
    one = part("one", FIRST, tiny_bert, tmp_path, base_name="a")
    other = part("other", FIRST, tiny_bert, tmp_path, base_name="b")
    full = part("full", FIRST, tiny_bert, tmp_path, base_name="a", method="full")
    folder = tmp_path / "joined"
    folder.mkdir()
    for wrong in (other, full):
        with pytest.raises(SyscallError, match=f"{wrong.name} cannot be joined") as refused:
            join([one, wrong], folder)
        assert (refused.value.code, refused.value.fields["field"]) == ("invalid", "join")
    with pytest.raises(SyscallError, match="the task one comes twice"):
        join([one, one], folder)
    (one.folder / CLASSES).write_bytes(b"torn")
    with pytest.raises(DeviceError, match="damaged"):
        join([one], folder)
    (one.folder / CLASSES).unlink()
    with pytest.raises(SyscallError, match="not kept with it"):
        join([one], folder)
    assert list(folder.iterdir()) == []


def test_the_sums_of_two_sets_of_rows_are_those_of_both() -> None:
    torch.manual_seed(0)
    vectors, classes = torch.randn(20, 4), [n % 3 for n in range(20)]
    together = class_sums(vectors, classes, count=3)
    later = class_sums(vectors[8:], classes[8:], count=3)
    added = later.plus(class_sums(vectors[:8], classes[:8], count=3))
    for a, b in zip(together, added, strict=True):
        assert torch.allclose(a, b)


def test_a_router_knows_the_spread_of_classes() -> None:
    torch.manual_seed(0)
    wide = torch.tensor([1.0, 0.1, 0.1, 0.1])  # a direction that says nothing
    middles = torch.eye(4)[1:3].repeat_interleave(50, dim=0)
    vectors = torch.nn.functional.normalize(middles + wide * torch.randn(100, 4), dim=1)
    truth = [0] * 50 + [1] * 50
    router = fit_router(class_sums(vectors, [2 * n for n in truth], count=3), [0, 0, 1])
    assert router.heads.tolist() == [0, 1]  # nobody has seen the class between them
    assert sum(a == b for a, b in zip(router.choose(vectors), truth, strict=True)) > 95
