"""How good predicted labels are: accuracy, F1, the table of classes, what is taken for what.

Owns the arithmetic on one label a row, by scikit-learn. Macro F1 is the mean over the classes that
occur in the rows or in the predictions; a class with neither says nothing about the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from llmos.drivers.metrics.bootstrap import Array, Measure, divided, mean_of
from llmos.syscalls.errors import SyscallError


class ClassScore(NamedTuple):
    """One class: of what was said to be it, how much was; of what was it, how much was said."""

    label: str
    precision: float
    recall: float
    f1: float
    rows: int  # with this label in truth


class LabelScores(NamedTuple):
    """`confusion[i][j]` counts rows of label i that were predicted as label j."""

    accuracy: float
    macro_f1: float
    micro_f1: float
    classes: tuple[ClassScore, ...]
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]

    def metrics(self) -> dict[str, float]:
        """The figures by name."""
        return {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "micro_f1": self.micro_f1,
        }


def score_labels(
    truth: Sequence[str], predicted: Sequence[str], *, labels: Sequence[str] = ()
) -> LabelScores:
    """Compare predictions with the truth.

    `labels` orders the tables; labels that are in neither are left in with no rows, and labels that
    it lacks follow in alphabetical order. Raises: SyscallError("invalid") for no rows or unequal
    numbers of them.
    """
    from sklearn.metrics import precision_recall_fscore_support

    _check_lengths(truth, predicted)
    seen = {*truth, *predicted}
    order = (*dict.fromkeys(labels), *sorted(seen - set(labels)))
    nothing: Any = 0  # what a class without rows scores
    columns: Any = precision_recall_fscore_support(  # one array a figure, by class
        truth, predicted, labels=order, average=None, zero_division=nothing
    )
    classes = tuple(
        ClassScore(label, float(p), float(r), float(f), int(rows))
        for label, p, r, f, rows in zip(order, *columns, strict=True)
    )
    occurring = [score.f1 for score in classes if score.label in seen]
    pairs = Counter(zip(truth, predicted, strict=True))
    accuracy = sum(t == p for t, p in zip(truth, predicted, strict=True)) / len(truth)
    return LabelScores(
        accuracy=accuracy,
        macro_f1=sum(occurring) / len(occurring),
        # Each row has one label and gets one, so every mistake is one of each kind.
        micro_f1=accuracy,
        classes=classes,
        labels=order,
        confusion=tuple(tuple(pairs[true, said] for said in order) for true in order),
    )


def label_measures(truth: Sequence[str], predicted: Sequence[str]) -> dict[str, Measure]:
    """The figures of `score_labels` for intervals and paired comparisons. Raises: as it does."""
    _check_lengths(truth, predicted)
    right = mean_of([t == p for t, p in zip(truth, predicted, strict=True)])
    return {"accuracy": right, "macro_f1": _macro_f1(truth, predicted), "micro_f1": right}


def confused_pairs(scores: LabelScores, *, most: int) -> list[tuple[str, str, int]]:
    """The mistakes made most often, as (label, taken for, rows), the commonest first."""
    pairs = [
        (scores.labels[i], scores.labels[j], count)
        for i, row in enumerate(scores.confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[:2]))[:most]


def _macro_f1(truth: Sequence[str], predicted: Sequence[str]) -> Measure:
    """A row's parts are, per class: is it right, is it said, is it true."""
    import numpy as np

    index = {label: place for place, label in enumerate(sorted({*truth, *predicted}))}
    count = len(index)
    true = np.array([index[label] for label in truth])
    said = np.array([index[label] for label in predicted])
    rows = np.zeros((len(truth), 3 * count))
    numbers = np.arange(len(truth))
    hits = numbers[true == said]
    rows[hits, true[hits]] = 1
    rows[numbers, count + said] = 1
    rows[numbers, 2 * count + true] = 1

    def figure(sums: Array) -> Array:
        right, named, real = sums[:, :count], sums[:, count : 2 * count], sums[:, 2 * count :]
        f1 = divided(2 * right, named + real)
        return divided(f1.sum(axis=1), (named + real > 0).sum(axis=1).astype(float))

    return Measure(rows, figure)


def _check_lengths(truth: Sequence[str], predicted: Sequence[str]) -> None:
    if not truth:
        raise SyscallError("invalid", "data: there are no rows to measure", field="data")
    if len(truth) != len(predicted):
        raise SyscallError(
            "invalid",
            f"{len(predicted)} predictions for {len(truth)} rows; each row needs one",
            field="predictions",
        )
