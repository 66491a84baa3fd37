"""What a router needs of the rows of a task: sums over their vectors, kept beside the adapter.

Owns the file `classes.safetensors` of a task folder. The vectors are those of the base without
adapters, at length one. The sums of two sets of rows add up to those of both, so that adapters are
joined, and trained further, without the rows that they learnt from. Refuses to know how a router is
made of them (`joining.py`).

They are no rows, but a class of very few rows has a sum that is nearly its text's vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmos.drivers.contract import DeviceError
from llmos.drivers.task_folder import CLASSES
from llmos.drivers.training.encoder import Encoder, mean_vectors
from llmos.drivers.training.task import Item

if TYPE_CHECKING:
    import torch


class ClassSums(NamedTuple):
    """Sums over rows; classes are in the order of the heads and of each head's labels."""

    counts: torch.Tensor  # (classes,), rows
    sums: torch.Tensor  # (classes, width), of their vectors
    moment: torch.Tensor  # (width, width), of the vectors' products with themselves, all classes

    def plus(self, earlier: ClassSums) -> ClassSums:
        """With the sums of other rows, whose classes are the first ones of these."""
        known = len(earlier.counts)
        counts, sums = self.counts.clone(), self.sums.clone()
        counts[:known] += earlier.counts
        sums[:known] += earlier.sums
        return ClassSums(counts, sums, self.moment + earlier.moment)

    def save(self, folder: Path) -> None:
        """Write them into a task folder, in float32. Raises: OSError."""
        from safetensors.torch import save_file

        tensors = {name: one.float().contiguous() for name, one in self._asdict().items()}
        save_file(tensors, folder / CLASSES)


def class_sums(vectors: torch.Tensor, classes: Sequence[int], *, count: int) -> ClassSums:
    """The sums of vectors `(rows, width)` of any length, each of one of `count` classes."""
    import torch

    units = torch.nn.functional.normalize(vectors.double(), dim=1)
    numbers = torch.tensor(classes)
    sums = torch.zeros((count, units.shape[1]), dtype=torch.float64).index_add_(0, numbers, units)
    counts = torch.bincount(numbers, minlength=count).double()
    return ClassSums(counts, sums, units.T @ units)


def sums_of_items(encoder: Encoder, items: Sequence[Item]) -> ClassSums | None:
    """The sums of an encoder's rows, with those that the version it goes on from has.

    None where there is nothing to join: the body is not the base with an adapter, or it goes on
    from a version whose sums are not known. Raises: DeviceError.
    """
    if encoder.job.method != "lora" or not encoder.is_on_base:
        return None
    with encoder.network["body"].disable_adapter():
        vectors = mean_vectors(encoder, [item.tokens for item in items])
    (head,) = encoder.heads
    found = class_sums(vectors, [item.payload for item in items], count=len(head.labels))
    if not encoder.learnt[0]:
        return found
    assert encoder.job.parent is not None
    earlier = load_sums(Path(encoder.job.parent))
    return None if earlier is None else found.plus(earlier)


def load_sums(folder: Path) -> ClassSums | None:
    """The sums in a task folder, in float64; None if it has none. Raises: DeviceError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / CLASSES
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
        return ClassSums(*(tensors[name].double() for name in ClassSums._fields))
    except (OSError, SafetensorError, KeyError) as problem:
        raise DeviceError(f"the class sums of {folder} are damaged: {problem}") from problem
