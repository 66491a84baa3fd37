"""Learning one thing after another: rows kept for replay, and what was forgotten all the same.

Owns a bounded buffer of earlier rows, and the matrix of accuracies that tells how much was lost.
Refuses to know objectives and steps. Which rows a job replays is `gathering.py`'s, the averaging of
weights `course.py`'s, adapters of their own for each task `joining.py`'s.
Sources: Chaudhry et al. 2019 (replay from a tiny memory, arXiv 1902.10486) and 2018 (forgetting,
arXiv 1801.10112).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmos.drivers.rows.content import labels_of
from llmos.drivers.rows.kinds import Row
from llmos.syscalls.errors import SyscallError


class ReplayBuffer:
    """At most so many rows of all that was learnt, each label's share as equal as they allow.

    Which rows are kept depends on the seed and on the rows, not on how often one was added.
    """

    def __init__(self, capacity: int, *, seed: int = 0) -> None:
        if capacity < 1:
            raise SyscallError("invalid", "a replay buffer holds one row or more", field="capacity")
        self._capacity = capacity
        self._random = random.Random(seed)
        self._by_label: dict[str, list[Row]] = {}

    def add(self, rows: Sequence[Row]) -> None:
        """Take in the rows of a task; of labels that have too many, some make room."""
        shuffled = list(rows)
        self._random.shuffle(shuffled)
        for row in shuffled:
            self._by_label.setdefault(_key(row), []).append(row)
        while len(self) > self._capacity:
            max(self._by_label.values(), key=len).pop()

    def rows(self) -> list[Row]:
        """What is held, label by label."""
        return [row for rows in self._by_label.values() for row in rows]

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._by_label.values())


def _key(row: Row) -> str:
    """What replay keeps in balance: a row's label, or the kinds of its entities."""
    return " ".join(sorted(labels_of(row)))


@dataclass(slots=True)
class ForgettingMatrix:
    """Accuracy on each task after each was learnt: `rows[after][task]`, tasks in learning order."""

    tasks: list[str] = field(default_factory=list[str])
    rows: list[list[float]] = field(default_factory=list[list[float]])

    def learnt(self, task: str, accuracies: Sequence[float]) -> None:
        """Note the accuracies on all tasks so far, `task` being the one just learnt."""
        self.tasks.append(task)
        if len(accuracies) != len(self.tasks):
            raise ValueError(f"{len(accuracies)} accuracies for {len(self.tasks)} tasks")
        self.rows.append(list(accuracies))

    @property
    def final(self) -> float:
        """The mean accuracy on all tasks after the last."""
        return sum(self.rows[-1]) / len(self.rows[-1])

    @property
    def forgetting(self) -> float:
        """How far a task is below its best by the end, on average over all but the last task."""
        lost = [
            max(row[task] for row in self.rows[task:]) - self.rows[-1][task]
            for task in range(len(self.tasks) - 1)
        ]
        return sum(lost) / len(lost) if lost else 0.0

    def picture(self, path: Path, *, title: str) -> None:
        """Draw the matrix as a heat map, PNG or SVG by the path's ending. Raises: OSError."""
        from matplotlib.figure import Figure

        count = len(self.tasks)
        figure = Figure(figsize=(1.5 + 0.8 * count, 1.2 + 0.6 * count), layout="constrained")
        axes = figure.add_subplot()
        padded = [[*row, *[float("nan")] * (count - len(row))] for row in self.rows]
        image = axes.imshow(padded, vmin=0.0, vmax=1.0, cmap="viridis")
        for after, row in enumerate(self.rows):
            for task, value in enumerate(row):
                shade = "black" if value > 0.6 else "white"
                axes.text(task, after, f"{value:.2f}", ha="center", va="center", color=shade)
        axes.set_xticks(range(count), self.tasks, rotation=45, ha="right")
        axes.set_yticks(range(count), self.tasks)
        axes.set_xlabel("accuracy on")
        axes.set_ylabel("after learning")
        axes.set_title(f"{title}: final {self.final:.3f}, forgetting {self.forgetting:.3f}")
        figure.colorbar(image)
        figure.savefig(path)
