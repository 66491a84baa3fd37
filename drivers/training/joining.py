"""Task models that learnt apart, put together: each keeps its adapter and head, a router chooses.

Nothing learnt before is touched by what is learnt after, so nothing of it is forgotten; what can go
wrong is the choice of the adapter. The router is a linear discriminant on the vectors of the base
without adapters: of each class it needs the mean, and of all classes one covariance, both of which
`class_sums.py` keeps beside each adapter. Refuses to know rows, and to train anything by gradients.
Source: Hayes and Kanan, "Lifelong Machine Learning with Deep Streaming Linear Discriminant
Analysis", 2020 (arXiv 1909.01520).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from llmos.drivers import encoder_net
from llmos.drivers.encoder_net import Router
from llmos.drivers.task_folder import (
    ADAPTER,
    ADAPTERS,
    TaskFolder,
    TaskHead,
    read_task,
    write_settings,
)
from llmos.drivers.training.class_sums import ClassSums, load_sums
from llmos.syscalls.errors import SyscallError

# How far the covariance is drawn towards equal in all directions: with few rows a class most of its
# directions are noise.
_SHRINKAGE = 0.1


class Part(NamedTuple):
    """A version to join: an adapter with one head, or adapters that were joined before."""

    name: str
    folder: Path


class _Opened(NamedTuple):
    """A part as it was found; `heads` have the names that they will have, one an adapter."""

    task: TaskFolder
    sums: ClassSums
    heads: tuple[TaskHead, ...]

    def adapter(self, place: int) -> Path:
        folder = self.task.folder
        return folder / ADAPTER if self.task.layout == ADAPTER else folder / ADAPTERS / str(place)


def join(parts: Sequence[Part], folder: Path) -> None:
    """Write one task model of several into an empty folder.

    A part's head is called as the part; heads that were joined before keep their names.
    Raises: SyscallError("invalid") as `check_parts`, "storage"; DeviceError.
    """
    opened = _open(parts, base=read_task(parts[0].folder).base)
    heads = [head for part in opened for head in part.heads]
    sums = _side_by_side([part.sums for part in opened])
    places = [place for place, head in enumerate(heads) for _ in head.labels]
    try:
        encoder_net.join_heads(
            [part.task.folder for part in opened], folder, router=fit_router(sums, places)
        )
        sums.save(folder)
        adapters = [part.adapter(place) for part in opened for place in range(len(part.heads))]
        for place, adapter in enumerate(adapters):
            shutil.copytree(adapter, folder / ADAPTERS / str(place))
        write_settings(
            folder,
            method="lora",
            base=opened[0].task.base,
            max_length_tokens=min(part.task.max_length_tokens for part in opened),
            heads=heads,
        )
    except OSError as problem:
        raise SyscallError(
            "storage", f"the model cannot be written to {folder}: {problem}", path=str(folder)
        ) from problem


def joined_to(parts: Sequence[Part], name: str, save: Callable[[Path], None], folder: Path) -> None:
    """Join what `save` writes, under this name, to parts, into an empty folder.

    Raises: as `join`.
    """
    with tempfile.TemporaryDirectory(dir=folder) as apart:
        save(Path(apart))
        join([*parts, Part(name, Path(apart))], folder)


def check_parts(parts: Sequence[Part], *, base: str) -> None:
    """Refuse what cannot be joined on the base of this name.

    Raises: SyscallError("invalid") naming the part: it must be a LoRA adapter with one head of
    classes whose sums are known, or several that were joined, and no task may come twice;
    DeviceError for damaged files.
    """
    _open(parts, base=base)


def fit_router(sums: ClassSums, heads: Sequence[int]) -> Router:
    """A router between heads; `heads` is which one each class is of."""
    import torch

    seen = sums.counts > 0
    counts, totals = sums.counts[seen].double(), sums.sums[seen].double()
    means = totals / counts[:, None]  # (classes, width)
    width = means.shape[1]
    covariance = (sums.moment.double() - totals.T @ means) / counts.sum()
    even = torch.eye(width, dtype=torch.float64) * covariance.trace() / width
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * even
    weight = torch.linalg.solve(covariance, means.T).T  # (classes, width)
    bias = -0.5 * (weight * means).sum(dim=1)
    return Router(weight.float(), bias.float(), torch.tensor(heads)[seen])


def _open(parts: Sequence[Part], *, base: str) -> list[_Opened]:
    opened = [_opened(part, base) for part in parts]
    names = [head.name for part in opened for head in part.heads]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SyscallError(
            "invalid",
            f"join: the task {', '.join(twice)} comes twice; join each once",
            field="join",
        )
    return opened


def _opened(part: Part, base: str) -> _Opened:
    task = read_task(part.folder)
    is_apart = task.layout == ADAPTER and len(task.heads) == 1
    is_of_classes = all(head.objective == "classify" for head in task.heads)
    is_fit = (is_apart or task.layout == ADAPTERS) and is_of_classes and task.method == "lora"
    if not is_fit or task.base != base:
        raise SyscallError(
            "invalid",
            f"join: {part.name} cannot be joined: it must be trained by classify and lora on "
            f"{base}, and not as a mixture",
            field="join",
            name=part.name,
        )
    sums = load_sums(part.folder)
    if sums is None:
        raise SyscallError(
            "invalid",
            f"join: {part.name} cannot be joined: the sums of its classes, by which a router "
            "finds them, are not kept with it; train it again",
            field="join",
            name=part.name,
        )
    heads = (replace(task.heads[0], name=part.name),) if is_apart else task.heads
    return _Opened(task, sums, heads)


def _side_by_side(sums: Sequence[ClassSums]) -> ClassSums:
    """The sums of tasks that have no class in common."""
    import torch

    return ClassSums(
        torch.cat([one.counts for one in sums]),
        torch.cat([one.sums for one in sums]),
        torch.stack([one.moment for one in sums]).sum(dim=0),
    )
