"""How good tagged entities are: found whole, with the right type, or not at all.

Owns the arithmetic on BIO tags, by seqeval in its strict mode: an entity begins with B, and one
that is a word too long counts as wrong. A sentence that was cut is scored on all its words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmos.drivers.metrics.bootstrap import Array, Measure, divided
from llmos.syscalls.errors import SyscallError

OUTSIDE = "O"

Tags = Sequence[Sequence[str]]  # (sentences, words)


class EntityScore(NamedTuple):
    """One type of entity: `right` of the `found` ones are among the `real` ones."""

    entity: str
    precision: float
    recall: float
    f1: float
    real: int
    found: int
    right: int


class EntityScores(NamedTuple):
    """Over all entities (micro), over their types (macro), and over words."""

    precision: float
    recall: float
    f1: float
    macro_f1: float
    token_accuracy: float
    entities: tuple[EntityScore, ...]

    def metrics(self) -> dict[str, float]:
        """The figures by name."""
        return {
            "f1": self.f1,
            "precision": self.precision,
            "recall": self.recall,
            "macro_f1": self.macro_f1,
            "token_accuracy": self.token_accuracy,
        }


def score_entities(truth: Tags, predicted: Tags) -> EntityScores:
    """Compare predicted tags with the true ones.

    Raises: SyscallError("invalid") for no sentences, unequal lengths, or a tag that is not BIO.
    """
    counts = _counts(truth, predicted)
    scores = tuple(
        _score(kind, *(int(n) for n in sums))
        for kind, sums in zip(counts.kinds, counts.rows.sum(axis=0).reshape(3, -1).T, strict=True)
    )
    right, found, real = (
        sum(getattr(score, name) for score in scores) for name in ("right", "found", "real")
    )
    total = _score("", right, found, real)
    return EntityScores(
        precision=total.precision,
        recall=total.recall,
        f1=total.f1,
        macro_f1=sum(score.f1 for score in scores) / len(scores) if scores else 0.0,
        token_accuracy=_token_accuracy(truth, predicted),
        entities=scores,
    )


def entity_measures(truth: Tags, predicted: Tags) -> dict[str, Measure]:
    """F1 over all entities and over their types; rows are sentences. Raises: as `score_entities`.

    Sentences are drawn whole: entities of one sentence do not vary freely of each other.
    """
    kinds, rows = _counts(truth, predicted)
    count = len(kinds)

    def over_all(sums: Array) -> Array:
        right, found, real = (sums[:, n * count : (n + 1) * count].sum(axis=1) for n in range(3))
        return divided(2 * right, found + real)

    def over_kinds(sums: Array) -> Array:
        right, found, real = (sums[:, n * count : (n + 1) * count] for n in range(3))
        f1 = divided(2 * right, found + real)
        return divided(f1.sum(axis=1), (found + real > 0).sum(axis=1).astype(float))

    return {"f1": Measure(rows, over_all), "macro_f1": Measure(rows, over_kinds)}


class _Counts(NamedTuple):
    kinds: tuple[str, ...]
    rows: Array  # (sentences, 3 x kinds): right, found and real entities of each kind


def _counts(truth: Tags, predicted: Tags) -> _Counts:
    import numpy as np

    _check_lengths(truth, predicted)
    real, found = _entities(truth, "truth"), _entities(predicted, "predictions")
    kinds = tuple(sorted({kind for sets in (real, found) for one in sets for kind, _, _ in one}))
    index = {kind: place for place, kind in enumerate(kinds)}
    rows = np.zeros((len(truth), 3, len(kinds)))
    for number, (are, said) in enumerate(zip(real, found, strict=True)):
        for place, entities in enumerate((are & said, said, are)):
            for kind, _, _ in entities:
                rows[number, place, index[kind]] += 1
    return _Counts(kinds, rows.reshape(len(truth), 3 * len(kinds)))


def _entities(tags: Tags, field: str) -> list[set[tuple[str, int, int]]]:
    """Each sentence's entities as (type, first word, word after the last)."""
    from seqeval.scheme import IOB2, Entities

    for number, sentence in enumerate(tags, start=1):
        for tag in sentence:
            if tag != OUTSIDE and not (tag[:2] in ("B-", "I-") and len(tag) > 2):
                raise SyscallError(
                    "invalid",
                    f"{field}: sentence {number}: {tag!r} is no BIO tag; tags are O, B-TYPE and "
                    "I-TYPE",
                    field=field,
                )
    found = Entities([list(sentence) for sentence in tags], IOB2, False).entities
    return [{(str(e.tag), int(e.start), int(e.end)) for e in sentence} for sentence in found]


def _score(entity: str, right: int, found: int, real: int) -> EntityScore:
    precision = right / found if found else 0.0
    recall = right / real if real else 0.0
    f1 = 2 * right / (found + real) if found + real else 0.0
    return EntityScore(entity, precision, recall, f1, real, found, right)


def _token_accuracy(truth: Tags, predicted: Tags) -> float:
    pairs = [
        tag == said
        for tags, saids in zip(truth, predicted, strict=True)
        for tag, said in zip(tags, saids, strict=True)
    ]
    return sum(pairs) / len(pairs) if pairs else 0.0


def _check_lengths(truth: Tags, predicted: Tags) -> None:
    if not truth:
        raise SyscallError("invalid", "data: there are no sentences to measure", field="data")
    if len(truth) != len(predicted):
        raise SyscallError(
            "invalid",
            f"{len(predicted)} tagged sentences for {len(truth)} sentences",
            field="predictions",
        )
    for number, (tags, said) in enumerate(zip(truth, predicted, strict=True), start=1):
        if len(tags) != len(said):
            raise SyscallError(
                "invalid",
                f"sentence {number} has {len(tags)} words and {len(said)} predicted tags",
                field="predictions",
            )
