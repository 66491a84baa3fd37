"""In which order items are trained on: a function of the seed and the step alone.

Owns epochs, batches and the shares of a mixture. A run that goes on from a checkpoint needs no more
than its step to see what an undisturbed one would have seen. Pure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmos.drivers.training.task import Item

# How much longer than the shortest row of a padded piece its longest may be.
_ALIKE = 1.25


class PieceSize(NamedTuple):
    """Tokens of one forward and backward pass: the most that a device computes well, and how many
    are enough to keep it busy.
    """

    most: int
    enough: int


class Order:
    """Batches of places among items, epoch after epoch without end.

    Without `shares` each epoch holds every item once. With them an epoch is as long, and each task
    fills its share of it: its items in turn, all of them before one comes again.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        batch_size: int,
        seed: int,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        self._count = len(items)
        self._batch_size = batch_size
        self._seed = seed
        self._by_task: dict[str, list[int]] = {}
        for place, item in enumerate(items):
            name = item.task if shares is not None else ""
            self._by_task.setdefault(name, []).append(place)
        self._sizes = _sizes(self._by_task, shares)
        self.batches_per_epoch = math.ceil(sum(self._sizes.values()) / batch_size)
        self._epoch: int | None = None  # whose places are these
        self._places: list[int] = []

    def batch(self, step: int) -> list[int]:
        """The places of a step's items; steps count from 1."""
        epoch, number = divmod(step - 1, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._places = epoch, self._shuffled(epoch)
        first = number * self._batch_size
        return self._places[first : first + self._batch_size]

    def _shuffled(self, epoch: int) -> list[int]:
        places: list[int] = []
        for name, size in self._sizes.items():
            places += self._drawn(name, epoch * size, size)
        random.Random(f"{self._seed} {epoch}").shuffle(places)
        return places

    def _drawn(self, name: str, first: int, count: int) -> list[int]:
        """The next places of a task, whose items come in rounds, each in an order of its own."""
        places = self._by_task[name]
        drawn: list[int] = []
        while len(drawn) < count:
            turn, skip = divmod(first + len(drawn), len(places))
            shuffled = places.copy()
            random.Random(f"{self._seed} {name} {turn}").shuffle(shuffled)
            drawn += shuffled[skip : skip + count - len(drawn)]
        return drawn


def _sizes(
    by_task: Mapping[str, Sequence[int]], shares: Mapping[str, float] | None
) -> dict[str, int]:
    """How many items of each task an epoch has."""
    if shares is None:
        return {name: len(places) for name, places in by_task.items()}
    total = sum(len(places) for places in by_task.values())
    return {name: max(1, round(shares[name] * total)) for name in by_task}


def planned_steps(per_epoch: int, *, epochs: float, max_steps: int | None) -> int:
    """Steps of a run: the epochs' batches, rounded up, and no more than `max_steps`."""
    steps = max(1, math.ceil(per_epoch * epochs))
    return steps if max_steps is None else min(steps, max_steps)


def micro_batches(
    items: Sequence[Item], *, rows: int, size: PieceSize, is_packed: bool
) -> list[list[Item]]:
    """A batch cut into pieces of at most `rows` items and `size.most` tokens, padding included.

    Items of like length share a piece, so that little is padded: one that is much longer than the
    piece's first begins another, once the piece has `size.enough` tokens. An item that is longer
    than `size.most` is a piece of its own.
    """
    pieces: list[list[Item]] = []
    held = 0
    for item in sorted(items, key=lambda item: len(item.tokens)):
        length = len(item.tokens)
        piece = pieces[-1] if pieces else []
        width = held + length if is_packed else (len(piece) + 1) * length
        shortest = len(piece[0].tokens) if piece else length
        is_alike = is_packed or held < size.enough or length <= _ALIKE * shortest
        if piece and len(piece) < rows and width <= size.most and is_alike:
            piece.append(item)
            held += length
        else:
            pieces.append([item])
            held = length
    return pieces
