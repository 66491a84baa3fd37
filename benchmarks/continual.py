"""Learning without forgetting: Banking77 in seven steps of eleven classes.

Each step sees the rows of its own classes only, and judges over all classes so far, unsorted: the
model is not told which step a text is from. Sides, with the same settings:

- joint: all rows at once, which no side that learns in steps can be expected to pass;
- replay: each step goes on from the last, with rows of a bounded buffer among the new ones;
- router: an adapter of its own for each step, joined, a router choosing by the text;
- naive: each step goes on from the last with its new rows alone.

Forgetting is how far a step's accuracy ends below its best, on average over all but the last.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.form import Floor, main_with
from benchmarks.intent import rows
from benchmarks.task_runs import Kept, encoder_folder, parser, train
from llmos.drivers.rows.kinds import LabelledRow
from llmos.drivers.task_model import TaskModel
from llmos.drivers.training.continual import ForgettingMatrix, ReplayBuffer
from llmos.drivers.training.joining import Part, join

STEPS = 7
A_CLASS = 20  # rows to train on
BUFFER = 385  # rows that replay may keep, of all steps: five a class
SHARED: Mapping[str, Any] = {
    "objective": "classify",
    "batch_size": 32,
    "max_length_tokens": 96,
    "dropout": 0.1,
    "weight_decay": 0.01,
    "warmup_share": 0.1,
}
FULL: Mapping[str, Any] = {
    **SHARED,
    "method": "full",
    "epochs": 4.0,
    "learning_rate": 3e-4,
    "layer_decay": 0.9,
    "freeze": ("embeddings",),
}
LORA: Mapping[str, Any] = {**SHARED, "method": "lora", "epochs": 4.0, "learning_rate": 2e-3}

Rows = Sequence[LabelledRow]


class Step:
    """The classes of one step: rows to train on and rows to judge by."""

    def __init__(self, name: str, train: Rows, test: Rows) -> None:
        self.name = name
        self.train = train
        self.test = test


def steps(*, a_class: int) -> list[Step]:
    """The classes in an order drawn once, eleven a step."""
    divided = rows()
    labels = sorted({row.label for row in divided.train})
    random.Random(0).shuffle(labels)
    found: list[Step] = []
    for number in range(STEPS):
        own = set(labels[number::STEPS])
        chosen = [row for row in divided.train if row.label in own]
        random.Random(number).shuffle(chosen)
        few = [row for label in sorted(own) for row in _first(chosen, label, a_class)]
        found.append(Step(str(number + 1), few, [row for row in divided.test if row.label in own]))
    return found


def _first(chosen: Rows, label: str, count: int) -> list[LabelledRow]:
    return [row for row in chosen if row.label == label][:count]


# --- the sides ------------------------------------------------------------------------------------


def accuracies(folder: Path, judged: Sequence[Step]) -> list[float]:
    """The served model's accuracy on the rows of each step, over all labels that it knows."""
    model = TaskModel(folder, Path(encoder_folder()))
    labels = model.classes()
    found: list[float] = []
    for step in judged:
        chances = model.classify([row.text for row in step.test])
        said = [labels[row.index(max(row))] for row in chances]
        found.append(statistics.fmean(a == b.label for a, b in zip(said, step.test, strict=True)))
    return found


def joint(all_steps: Sequence[Step], home: Path, **how: Any) -> dict[str, Any]:
    """All rows at once."""
    done = train([row for step in all_steps for row in step.train], **FULL, **how)
    folder = _written(done.built.save, home / "joint")
    found = accuracies(folder, all_steps)
    return {"final": statistics.fmean(found), "train_s": round(done.seconds, 1)}


def in_sequence(
    all_steps: Sequence[Step], home: Path, *, buffer: ReplayBuffer | None, **how: Any
) -> dict[str, Any]:
    """Step after step, each from the version before; with a buffer its rows are among the new."""
    matrix, seconds = ForgettingMatrix(), 0.0
    parent: dict[str, Any] = {}
    for place, step in enumerate(all_steps):
        kept: list[Any] = [] if buffer is None else buffer.rows()
        done = train([*step.train, *kept], **FULL, **parent, **how, seed=place)
        name = f"{'naive' if buffer is None else 'replay'}-{step.name}"
        folder = _written(done.built.save, home / name)
        seconds += done.seconds
        parent = {"parent": str(folder), "parent_kind": "task"}
        if buffer is not None:
            buffer.add(step.train)
        matrix.learnt(step.name, accuracies(folder, all_steps[: place + 1]))
    return _figures(matrix, seconds)


def routed(all_steps: Sequence[Step], home: Path, **how: Any) -> dict[str, Any]:
    """An adapter for each step, joined to those before, a router choosing among them."""
    matrix, seconds = ForgettingMatrix(), 0.0
    parts: list[Part] = []
    for place, step in enumerate(all_steps):
        done = train(step.train, **LORA, **how, seed=place)
        seconds += done.seconds
        parts.append(Part(step.name, _written(done.built.save, home / f"part-{step.name}")))
        folder = home / f"router-{step.name}"
        folder.mkdir()
        join(parts, folder)
        matrix.learnt(step.name, accuracies(folder, all_steps[: place + 1]))
    return _figures(matrix, seconds)


def _written(save: Callable[[Path], None], folder: Path) -> Path:
    folder.mkdir()
    save(folder)
    return folder


def _figures(matrix: ForgettingMatrix, seconds: float) -> dict[str, Any]:
    return {
        "final": matrix.final,
        "forgetting": matrix.forgetting,
        "train_s": round(seconds, 1),
        "matrix": [[round(value, 4) for value in row] for row in matrix.rows],
    }


# --- the report -----------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    kept = Kept(options.keep)
    all_steps = steps(a_class=4 if options.quick else A_CLASS)
    how: dict[str, Any] = {"max_steps": 4} if options.quick else {}

    def side(name: str, run: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        def once() -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as home:
                return run(Path(home))

        return kept.get(name, once)

    sides = {
        "joint": side("joint", lambda home: joint(all_steps, home, **how)),
        "replay": side(
            "replay",
            lambda home: in_sequence(all_steps, home, buffer=ReplayBuffer(BUFFER), **how),
        ),
        "naive": side("naive", lambda home: in_sequence(all_steps, home, buffer=None, **how)),
        "router": side("router", lambda home: routed(all_steps, home, **how)),
    }
    figures: dict[str, Any] = {
        "train_rows": sum(len(step.train) for step in all_steps),
        "test_rows": sum(len(step.test) for step in all_steps),
        "buffer_rows": BUFFER,
    }
    for name, found in sides.items():
        for key in ("final", "forgetting", "train_s", "matrix"):
            if key in found:
                value = found[key]
                figures[f"{name}_{key}"] = round(value, 4) if isinstance(value, float) else value
    for name in ("replay", "router", "naive"):
        figures[f"{name}_of_joint"] = round(sides[name]["final"] / sides["joint"]["final"], 4)
    figures["of_joint"] = figures["replay_of_joint"]
    if options.picture:
        draw(sides, options.picture)
    return figures


def draw(sides: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """A picture of each side's matrix."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("replay", "router", "naive"):
        matrix = ForgettingMatrix()
        for number, row in enumerate(sides[name]["matrix"], start=1):
            matrix.learnt(str(number), row)
        matrix.picture(folder / f"forgetting_{name}.svg", title=name)


def options() -> argparse.ArgumentParser:
    found = parser(__doc__)
    found.add_argument("--picture", type=Path, help="a folder for pictures of the matrices")
    return found


FLOORS = (Floor("of_joint", ">=", 0.9),)

if __name__ == "__main__":
    main_with(options(), "continual", measure, FLOORS)
