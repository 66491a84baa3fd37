"""Encoder objectives on MiniLM: a few rows and seconds are enough to do what the base cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.contract import ModelSpec
from llmos.drivers.embedding import TorchEmbedding
from llmos.drivers.rows.kinds import LabelledRow, PairRow, TaggedRow
from llmos.drivers.task_model import TaskModel
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.loop import Run
from llmos.drivers.training.objectives import Rows, builder

pytestmark = pytest.mark.model

QUESTIONS = {
    "lost_card": ("my card is gone", "I lost my card", "someone stole my bank card"),
    "refund": ("I want my money back", "how do I get a refund", "please return my payment"),
    "top_up": ("how do I add money", "top up my account", "put cash on my account"),
}


def trained(base: Path, folder: Path, rows: list[Any], **fields: Any) -> dict[str, float]:
    """Train a version into a folder; its scores on its own rows."""
    job = TrainJob.model_validate(
        {
            "base": str(base),
            "output": "",
            "method": "full",
            "freeze": ("embeddings",),
            "max_length_tokens": 32,
            "batch_size": 9,
            **fields,
        }
    )
    built = builder(job)(job, "cpu", Rows(rows, (), ()))
    items = built.task.encode(rows).items
    run = Run(built, items, job, device="cpu")
    while run.step < run.steps:
        run.take_step()
    built.save(folder)
    return built.task.evaluate(built.model, items, batch_size=9).metrics


def test_intents_of_three_examples_each_are_told_apart(minilm_path: Path, tmp_path: Path) -> None:
    rows = [LabelledRow(text, label, text) for label, texts in QUESTIONS.items() for text in texts]
    metrics = trained(minilm_path, tmp_path, rows, objective="classify", max_steps=2)
    assert metrics["accuracy"] == 1.0
    model = TaskModel(tmp_path, None)
    asked = ["where can my card be, it is missing", "give me a refund", "add cash to my account"]
    said = [model.labels[row.index(max(row))] for row in model.classify(asked)]
    assert said == ["lost_card", "refund", "top_up"]


def test_names_are_found_by_how_they_are_written(minilm_path: Path, tmp_path: Path) -> None:
    names = ("Anna", "Peter", "Maria", "Tom")
    rows = [
        TaggedRow(("then", name, "Smith", "went", "home"), ("O", "B-x", "I-x", "O", "O"), name)
        for name in names
    ]
    rows += [TaggedRow((*["we", "all", "went", "home"],), ("O",) * 4, "none")]
    fields = {"objective": "tag", "learning_rate": 1e-3, "epochs": 30, "max_steps": 30}
    assert trained(minilm_path, tmp_path, rows, **fields)["f1"] == 1.0
    (found,) = TaskModel(tmp_path, None).tag([["then", "Julia", "Smith", "went", "home"]])
    assert [tag for tag, _ in found] == ["O", "B-x", "I-x", "O", "O"]


def test_an_embedding_model_learns_what_belongs_together(minilm_path: Path, tmp_path: Path) -> None:
    pairs = [("qv17", "the pump"), ("zx42", "the valve"), ("kk03", "the filter")]
    rows = [PairRow(code, part, None, code) for code, part in pairs]
    fields = {"objective": "embed", "learning_rate": 1e-3, "max_steps": 12}
    assert trained(minilm_path, tmp_path, rows, **fields)["accuracy"] == 1.0
    model = TorchEmbedding(ModelSpec("trained", tmp_path))
    codes, parts = (model.embed(side) for side in zip(*pairs, strict=True))
    for place, code in enumerate(codes):
        near = [sum(a * b for a, b in zip(code, part, strict=True)) for part in parts]
        assert near.index(max(near)) == place
