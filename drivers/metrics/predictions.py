"""What a model said of each row, and the scores of it: from predictions to figures and tables.

Owns which scores belong to which objective. Refuses to know how the predictions were made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmos.drivers.metrics.answers import answer_measures, rouge_l
from llmos.drivers.metrics.bootstrap import RESAMPLES, Measure, difference, interval, ratio_of
from llmos.drivers.metrics.calibration import calibration
from llmos.drivers.metrics.entities import entity_measures, score_entities
from llmos.drivers.metrics.labels import confused_pairs, label_measures, score_labels
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.evaluation_results import Change, Table
from llmos.syscalls.values import JsonValue

SHOWN_MISTAKES = 20
SHOWN_WORST = 10
_WORST_CHARS = 160


class Prediction(NamedTuple):
    """One row and what the model said of it.

    `truth` and `said` are labels, texts, or lists of tags, by the objective; None where only a loss
    is measured. `loss` is in nats, summed over `weight` targets.
    """

    origin: str
    shown: str  # the row's text, for people
    truth: Any = None
    said: Any = None
    confidence: float | None = None
    loss: float | None = None
    weight: float = 1.0


class Scores(NamedTuple):
    """The figures of one model; `loss` is the mean per target where all rows have one."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    tables: dict[str, Table]
    loss: float | None


def score(
    objective: str,
    predictions: Sequence[Prediction],
    *,
    labels: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Score predictions; `labels` orders the tables of classes.

    Raises: SyscallError("invalid") without predictions, or for tags that are not BIO.
    """
    found = measures(objective, predictions)
    metrics = {name: measure.value for name, measure in found.items()}
    intervals: dict[str, tuple[float, float]] = {}
    for name, measure in found.items():
        bounds = interval(measure, resamples=resamples, seed=seed)
        intervals[name] = (bounds.low, bounds.high)
    more, tables = _DETAILS[objective](predictions, labels) if objective in _DETAILS else ({}, {})
    if (loss := metrics.get("loss")) is not None:
        low, high = intervals["loss"]
        metrics["perplexity"], intervals["perplexity"] = _exp(loss), (_exp(low), _exp(high))
    return Scores({**metrics, **more}, intervals, tables, metrics.get("loss"))


def compare(
    objective: str,
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Change]:
    """How much higher the first model's metrics are than the second's, on the same rows in order.

    Raises: SyscallError("invalid") when the rows are not the same.
    """
    for one, other in zip(first, second, strict=False):
        if one.origin != other.origin:
            raise SyscallError(
                "invalid",
                f"one model was measured on {one.origin} where the other was on {other.origin}; a "
                "paired comparison needs the same rows in the same order",
                field="rows",
            )
    changes: dict[str, Change] = {}
    others = measures(objective, second)
    for name, measure in measures(objective, first).items():
        if name in others:
            found = difference(others[name], measure, resamples=resamples, seed=seed)
            changes[name] = Change(value=found.value, low=found.low, high=found.high)
    return changes


def measures(objective: str, predictions: Sequence[Prediction]) -> dict[str, Measure]:
    """The figures that have intervals. Raises: SyscallError("invalid") without predictions."""
    if not predictions:
        raise SyscallError("invalid", "data: there are no rows to measure", field="data")
    truth, said = [one.truth for one in predictions], [one.said for one in predictions]
    found: dict[str, Measure] = {}
    match objective:
        case "classify":
            found.update(label_measures(truth, said))
        case "tag":
            found.update(entity_measures(truth, said))
        case "generate":
            found.update(answer_measures(truth, said))
        case _:
            pass  # a loss alone
    losses = [one.loss for one in predictions if one.loss is not None]
    if len(losses) == len(predictions):
        found["loss"] = ratio_of(losses, [one.weight for one in predictions])
    return found


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Keep predictions as JSON lines. Raises: OSError."""
    lines = (json.dumps(one._asdict(), ensure_ascii=False) + "\n" for one in predictions)
    path.write_text("".join(lines), encoding="utf-8")


def read_predictions(path: Path) -> list[Prediction]:
    """Predictions as `write_predictions` wrote them. Raises: OSError, ValueError."""
    with path.open(encoding="utf-8") as lines:
        return [Prediction(**json.loads(line)) for line in lines]


# --- tables ---------------------------------------------------------------------------------------

Details = tuple[dict[str, float], dict[str, Table]]


def _label_details(predictions: Sequence[Prediction], labels: Sequence[str]) -> Details:
    truth, said = [one.truth for one in predictions], [one.said for one in predictions]
    scores = score_labels(truth, said, labels=labels)
    tables = {
        "classes": _table(("class", "precision", "recall", "f1", "rows"), scores.classes),
        "confusion": _table(
            ("class", *scores.labels),
            [(label, *row) for label, row in zip(scores.labels, scores.confusion, strict=True)],
        ),
        "mistakes": _table(
            ("class", "taken for", "rows"), confused_pairs(scores, most=SHOWN_MISTAKES)
        ),
    }
    confidence = [one.confidence for one in predictions if one.confidence is not None]
    metrics: dict[str, float] = {}
    if len(confidence) == len(predictions):
        found = calibration(confidence, [one.truth == one.said for one in predictions])
        metrics = found.metrics()
        tables["reliability"] = _table(("from", "to", "rows", "confidence", "accuracy"), found.bins)
    wrong = sorted(
        (one for one in predictions if one.truth != one.said),
        key=lambda one: -(one.confidence or 0),
    )
    tables["worst"] = _table(
        ("row", "text", "wanted", "said", "confidence"),
        [
            (one.origin, _cut(one.shown), one.truth, one.said, one.confidence)
            for one in wrong[:SHOWN_WORST]
        ],
    )
    return metrics, tables


def _entity_details(predictions: Sequence[Prediction], _labels: Sequence[str]) -> Details:
    scores = score_entities([one.truth for one in predictions], [one.said for one in predictions])
    table = _table(
        ("entity", "precision", "recall", "f1", "real", "found", "right"), scores.entities
    )
    return scores.metrics(), {"entities": table}


def _answer_details(predictions: Sequence[Prediction], _labels: Sequence[str]) -> Details:
    scored = sorted(
        ((rouge_l(one.truth, one.said), one) for one in predictions), key=lambda pair: pair[0]
    )
    worst = [
        (one.origin, _cut(one.shown), _cut(one.truth), _cut(one.said), near)
        for near, one in scored[:SHOWN_WORST]
        if near < 1
    ]
    return {}, {"worst": _table(("row", "text", "wanted", "said", "rouge_l"), worst)}


_DETAILS: dict[str, Callable[[Sequence[Prediction], Sequence[str]], Details]] = {
    "classify": _label_details,
    "tag": _entity_details,
    "generate": _answer_details,
}


def _table(columns: Sequence[str], rows: Iterable[Sequence[JsonValue]]) -> Table:
    return Table(columns=tuple(columns), rows=tuple(tuple(row) for row in rows))


def _cut(text: str) -> str:
    return text if len(text) <= _WORST_CHARS else text[: _WORST_CHARS - 1] + "…"


def _exp(loss: float) -> float:
    """The perplexity of a loss; a loss beyond every float's logarithm has the largest float."""
    return math.exp(min(loss, 709.0))
