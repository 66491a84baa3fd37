"""The objective `classify`: texts of one class each, on an encoder's mean state.

Owns the loss, what a prediction is, and a head's first weights. Refuses to know steps and files.
Sources of the head's beginning: Kumar et al., "Fine-Tuning can Distort Pretrained Features", 2022
(arXiv 2202.10054); Snell, Swersky and Zemel, "Prototypical Networks", 2017 (arXiv 1703.05175).
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos.drivers import encoder_net
from llmos.drivers.metrics.labels import score_labels
from llmos.drivers.rows.kinds import LabelledRow
from llmos.drivers.task_folder import TaskHead
from llmos.drivers.training.class_sums import sums_of_items
from llmos.drivers.training.encoder import (
    Encoder,
    base_name,
    by_length,
    mean_vectors,
    open_encoder,
    rate,
)
from llmos.drivers.training.few_rows import contrast, thinned
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.joining import Part, check_parts, joined_to
from llmos.drivers.training.objectives import Rows
from llmos.drivers.training.task import Built, Encoded, Item, Measured
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonValue

if TYPE_CHECKING:
    import torch

SCALE = 16.0  # of first weights from means: how sure the nearest one makes the head
FIRST_ROWS = 20  # of a class, at most, in its first weights: more change little
SURENESS = 30.0  # of the logistic regression that a new head begins as (scikit-learn's C)
MOST_FITTED = 500  # classes of one: more would take minutes
SUMS_OF = 200  # rows of a class, at most, that a router is made from


class Scored(NamedTuple):
    """Probabilities `(rows, labels)` and the summed loss of rows in order."""

    chances: list[list[float]]
    loss: float


class ClassifyTask:
    """Trains one head of an encoder on texts with a label. Satisfies `Task`."""

    metric = "accuracy"
    is_higher_better = True

    def __init__(self, encoder: Encoder, place: int = 0) -> None:
        self._encoder = encoder
        self._place = place
        self._head = encoder.heads[place]
        self._numbers = {label: number for number, label in enumerate(self._head.labels)}

    def encode(self, rows: Sequence[LabelledRow], /) -> Encoded:
        """Raises: SyscallError("invalid") for a label that no training row has."""
        read = self._encoder.text.texts([row.text for row in rows])
        items = tuple(
            Item(one.tokens, self._number(row), row.origin, self._head.name)
            for row, one in zip(rows, read, strict=True)
        )
        cut = tuple(row.origin for row, one in zip(rows, read, strict=True) if one.is_cut)
        return Encoded(items, truncated=cut)

    def loss(self, model: Any, items: Sequence[Item], /) -> tuple[torch.Tensor, float]:
        import torch

        job = self._encoder.job
        if job.token_dropout and model.training:
            items = thinned(items, job.token_dropout)
        vectors = self._vectors(model, items)
        classes = torch.tensor([item.payload for item in items], device=vectors.device)
        seen = torch.nn.functional.dropout(vectors, job.dropout, training=model.training)
        summed = torch.nn.functional.cross_entropy(
            encoder_net.outputs(model, self._place, seen),
            classes,
            label_smoothing=job.label_smoothing,
            reduction="sum",
        )
        if job.contrast:
            summed = summed + job.contrast * contrast(vectors, classes)
        return summed, float(len(items))

    def evaluate(self, model: Any, items: Sequence[Item], /, *, batch_size: int) -> Measured:
        scored = self._score(model, items, batch_size=batch_size)
        labels = self._head.labels
        truth = [labels[item.payload] for item in items]
        best = [max(range(len(row)), key=row.__getitem__) for row in scored.chances]
        scores = score_labels(truth, [labels[place] for place in best], labels=labels)
        predictions: list[JsonValue] = [
            {
                "origin": item.origin,
                "label": true,
                "predicted": labels[place],
                "probability": round(row[place], 4),
            }
            for item, true, place, row in zip(items, truth, best, scored.chances, strict=True)
        ]
        return Measured({"loss": scored.loss / len(items), **scores.metrics()}, predictions)

    def begin(self, items: Sequence[Item]) -> None:
        """Give new labels their first weights, so that training begins with what the body can tell.

        A new head begins as a logistic regression on the body's vectors: random weights would first
        pull the body from what it knows. Where labels were learnt before, which keep their weights,
        or are very many, a new label's are its mean vector, as seen from the middle of all.
        """
        import torch

        learnt = self._encoder.learnt[self._place]
        if learnt == len(self._head.labels):
            return
        items = _first_of_each(items, most=FIRST_ROWS)
        found = mean_vectors(self._encoder, [item.tokens for item in items])
        numbers = torch.tensor([item.payload for item in items])
        present = sorted(set(numbers.tolist()))
        is_fitted = learnt == 0 and len(present) == len(self._head.labels) <= MOST_FITTED
        weight, bias = _regression(found, numbers) if is_fitted else _from_means(found, numbers)
        linear = self._encoder.network["heads"][self._place]["linear"]
        new = [number >= learnt for number in present]
        places = [number for number in present if number >= learnt]
        with torch.no_grad():
            linear.weight[places] = weight[new].to(linear.weight.device)
            linear.bias[places] = bias[new].to(linear.bias.device)

    def _score(self, model: Any, items: Sequence[Item], *, batch_size: int) -> Scored:
        import torch

        model.eval()
        chances: list[list[float]] = [[] for _ in items]
        loss = 0.0
        with torch.inference_mode():
            for places in by_length([item.tokens for item in items], batch_size=batch_size):
                logits = encoder_net.outputs(
                    model, self._place, self._vectors(model, [items[one] for one in places])
                ).float()
                truth = torch.tensor([items[one].payload for one in places], device=logits.device)
                loss += torch.nn.functional.cross_entropy(logits, truth, reduction="sum").item()
                for one, row in zip(places, logits.softmax(dim=1).tolist(), strict=True):
                    chances[one] = row
        if not math.isfinite(loss):
            raise SyscallError("failed", f"the loss on the {len(items)} rows is not a number")
        return Scored(chances, loss)

    def _vectors(self, model: Any, items: Sequence[Item]) -> torch.Tensor:
        ids, mask = encoder_net.padded(
            [item.tokens for item in items],
            padding=self._encoder.text.padding,
            device=model["body"].device,
        )
        states = encoder_net.token_states(model, ids, mask)
        return encoder_net.text_vectors(states, mask)

    def _number(self, row: LabelledRow) -> int:
        number = self._numbers.get(row.label)
        if number is None:
            raise unknown_label(row.origin, row.label, "label", self._head)
        return number


def _regression(vectors: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights `(classes, width)` and biases of a logistic regression."""
    import torch
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=SURENESS, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a good beginning is enough
        regression.fit(torch.nn.functional.normalize(vectors, dim=1).numpy(), numbers.numpy())
    weight = torch.from_numpy(regression.coef_).float()
    bias = torch.from_numpy(regression.intercept_).float()
    if len(weight) == 1:  # of two classes, the second's lead over the first
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return weight / vectors.norm(dim=1).mean(), bias


def _from_means(vectors: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights `(classes, width)` and biases by which the nearest mean of a class wins."""
    import torch

    present = sorted(set(numbers.tolist()))
    means = torch.stack([vectors[numbers == number].mean(dim=0) for number in present])
    middle = means.mean(dim=0)
    directions = torch.nn.functional.normalize(means - middle, dim=1)
    weight = directions * (SCALE / vectors.norm(dim=1).mean())
    return weight, -(weight @ middle)


def _first_of_each(items: Sequence[Item], *, most: int) -> list[Item]:
    """So many items of each label, the first ones."""
    seen: Counter[int] = Counter()
    found: list[Item] = []
    for item in items:
        seen[item.payload] += 1
        if seen[item.payload] <= most:
            found.append(item)
    return found


def build(job: TrainJob, device: str, rows: Rows) -> Built:
    """A classifier of the labels in the training rows, ready to train.

    What it writes is joined to the versions in the job's `join`.
    Raises: SyscallError("invalid") when they have only one label, or for a version that cannot be
    joined; DeviceError.
    """
    head = head_of(rows.train)
    parts = [Part(*one) for one in zip(job.join, map(Path, job.join_folders), strict=True)]
    check_parts(parts, base=base_name(job))
    encoder = open_encoder(job, device, [head])
    task = ClassifyTask(encoder)
    items = task.encode(rows.train).items
    task.begin(items)
    sums = sums_of_items(encoder, _first_of_each(items, most=SUMS_OF))

    def save(folder: Path) -> None:
        encoder.save(folder)
        if sums is not None:
            sums.save(folder)

    def save_joined(folder: Path) -> None:
        joined_to(parts, job.name, save, folder)

    return Built(encoder.network, task, save_joined if parts else save, rate(job), kind="task")


def head_of(rows: Sequence[LabelledRow], name: str = "main") -> TaskHead:
    """The head that rows ask for. Raises: SyscallError("invalid") for rows of one class."""
    labels = sorted({row.label for row in rows})
    if len(labels) < 2:
        raise SyscallError(
            "invalid",
            f"label: all {len(rows)} training rows are {', '.join(labels) or 'missing'}; telling "
            "classes apart takes two",
            field="label",
        )
    return TaskHead(name, "classify", tuple(labels))


def unknown_label(origin: str, label: str, field: str, head: TaskHead) -> SyscallError:
    """The error for a row whose label is not among those of training."""
    shown = ", ".join(head.labels[:10]) + (", ..." if len(head.labels) > 10 else "")
    return SyscallError(
        "invalid",
        f"{origin}: {field}: no training row has {label!r}; they have {shown}. Give it training "
        "rows or take the row out",
        field=field,
        origin=origin,
    )
