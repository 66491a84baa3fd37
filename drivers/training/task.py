"""A task: one objective on one loaded base, as the training loop sees it.

Owns the contract between objectives and the loop (`loop.py`). Refuses to know what a batch looks
like in tensors, where items come from, and how weights are stepped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from llmos.syscalls.values import JsonValue


class Item(NamedTuple):
    """One row as the model reads it."""

    tokens: tuple[int, ...]  # what the body reads; batches are sorted and counted by its length
    payload: Any  # the objective's own: labels, the prompt's length, ...
    origin: str  # "file.jsonl:12"; of several rows in one item, comma-separated
    task: str = ""  # of a mixture


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows within a length limit, and what the limit cost."""

    items: tuple[Item, ...]
    truncated: tuple[str, ...] = ()  # origins of rows that lost their end
    skipped: tuple[str, ...] = ()  # origins of rows that are left out: nothing to learn fits


class Measured(NamedTuple):
    """A task's scores on items, and what was predicted for each, for a report."""

    metrics: dict[str, float]
    predictions: list[JsonValue]


class Task(Protocol):
    """One objective on a loaded model with its tokenizer, made from a job."""

    @property
    def metric(self) -> str:
        """The name in `Measured.metrics` that decides which weights are best."""
        ...

    @property
    def is_higher_better(self) -> bool:
        """Whether more of that metric is better."""
        ...

    def encode(self, rows: Sequence[Any], /) -> Encoded:
        """Turn checked rows into items."""
        ...

    def loss(self, model: Any, items: Sequence[Item], /) -> tuple[Any, float]:
        """The summed loss of items (a scalar tensor with a gradient) and its weight.

        The loop divides an effective batch's gradient by the sum of the weights of its
        micro-batches, so that how the batch is cut does not change the step. A weight is what the
        loss is a sum over: target tokens, sentences, pairs.
        """
        ...

    def evaluate(self, model: Any, items: Sequence[Item], /, *, batch_size: int) -> Measured:
        """Score a model on items, nothing trained; leaves it in evaluation mode."""
        ...


class OfTask(NamedTuple):
    """A row of a mixture and the task that it belongs to."""

    task: str
    row: Any

    @property
    def origin(self) -> str:
        return self.row.origin


class Built(NamedTuple):
    """What the worker trains: a model with its trainable weights marked, and its task.

    `save` writes the files of the trained version into an empty folder. `rate` is the peak of the
    learning rate where the job names none. `shares` is how much of an epoch each task of a mixture
    gets (they add up to 1); None is as much as it has rows. `is_packed` says that a batch is
    computed without padding, `is_joint` that an item's loss depends on those beside it, so that a
    batch is cut by `micro_batch` alone. `kind` is what the registry calls a version of these files.
    """

    model: Any
    task: Task
    save: Callable[[Path], None]
    rate: float
    shares: Mapping[str, float] | None = None
    is_packed: bool = False
    is_joint: bool = False
    kind: Literal["adapter", "task", "full"] = "adapter"
