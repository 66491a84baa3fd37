"""Runs of task models in benchmarks: what is over is kept, and what was cut short goes on."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import continual, intent, ner, task_runs
from benchmarks.task_runs import Kept, train
from llmos.drivers.rows.kinds import LabelledRow
from llmos.drivers.training.loop import Run


def test_a_part_is_measured_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def measure() -> dict[str, Any]:
        asked.append("once")
        return {"accuracy": 0.5}

    path = tmp_path / "kept"
    for _ in range(2):
        figures = Kept(path).get("few", measure)
        assert figures["accuracy"] == 0.5
    assert asked == ["once"]
    assert Kept(path).state("few") == tmp_path / "kept.few.state"
    assert Kept(None).state("few") is None


def test_a_run_that_was_cut_short_ends_as_an_undisturbed_one(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_runs, "encoder_folder", lambda: str(tiny_bert))
    monkeypatch.setattr(task_runs, "_SAVE_EVERY_S", 0.0)
    rows = [
        LabelledRow(f"{word} {n}", word, f"{word} {n}")
        for n in range(6)
        for word in ("alpha", "beta")
    ]
    how: dict[str, Any] = {
        "objective": "classify",
        "method": "full",
        "max_length_tokens": 16,
        "max_steps": 6,
        "epochs": 9.0,
    }
    whole = train(rows, **how).built.model.state_dict()
    step, taken = Run.take_step, 0

    def cut(run: Run) -> Any:
        nonlocal taken
        taken += 1
        if taken == 4:
            raise KeyboardInterrupt
        return step(run)

    state = tmp_path / "state"
    monkeypatch.setattr(Run, "take_step", cut)
    with pytest.raises(KeyboardInterrupt):
        train(rows, state=state, **how)
    assert state.exists()
    again = train(rows, state=state, **how)
    assert taken == 7 and not state.exists()  # three steps, the one cut short, three more
    for name, weights in again.built.model.state_dict().items():
        assert torch.equal(weights, whole[name])


def test_splits_hold_every_class_and_share_no_rows() -> None:
    divided = intent.rows()
    sides = [{row.origin for row in side} for side in divided]
    assert not sides[0] & sides[2] and not sides[0] & sides[1] and not sides[1] & sides[2]
    few = intent.a_few(divided.train, draw=1)
    assert set(Counter(row.label for row in few).values()) == {intent.A_CLASS}
    assert len({row.label for row in divided.test}) == 77
    found = continual.steps(a_class=4)
    assert [len(step.train) for step in found] == [44] * continual.STEPS
    assert sum(len(step.test) for step in found) == len(divided.test)


def test_the_entity_table_is_the_mean_over_seeds() -> None:
    tables = [{"x": {"precision": p, "recall": 1.0, "f1": 0.5, "rows": 4}} for p in (0.5, 1.0)]
    assert ner.entity_table(tables) == [
        {"entity": "x", "precision": 0.75, "recall": 1.0, "f1": 0.5, "rows": 4}
    ]
