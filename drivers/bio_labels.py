"""BIO labels of words: which sequences mean something, and the best one that does.

"B-kind" begins an entity, "I-kind" goes on with one of the same kind, "O" is outside. Pure.
Source: Ramshaw and Marcus 1995 (arXiv cmp-lg/9505040); Viterbi 1967.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

OUTSIDE = "O"


def is_bio(label: str) -> bool:
    """Whether a label is "O", "B-kind" or "I-kind"."""
    return label == OUTSIDE or (label[:2] in ("B-", "I-") and len(label) > 2)


def all_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels that sentences with these may have: "O", then "B-" and "I-" of each kind."""
    kinds = sorted({label[2:] for label in labels if label != OUTSIDE})
    return (OUTSIDE, *(f"{part}-{kind}" for kind in kinds for part in "BI"))


def can_follow(label: str, before: str | None) -> bool:
    """Whether a label may stand behind another; None is the beginning of a sentence."""
    return label[:2] != "I-" or (before is not None and before in (f"B-{label[2:]}", label))


def repaired(labels: Sequence[str]) -> tuple[str, ...]:
    """A sequence that means something: an "I-" that goes on with nothing becomes a "B-"."""
    found: list[str] = []
    for label in labels:
        legal = can_follow(label, found[-1] if found else None)
        found.append(label if legal else f"B-{label[2:]}")
    return tuple(found)


class BioDecoder:
    """Finds the most probable sequence of labels among those that are legal."""

    def __init__(self, labels: Sequence[str]) -> None:
        import numpy as np

        self._first = np.array([0.0 if can_follow(one, None) else -np.inf for one in labels])
        self._steps = np.array(  # (before, label)
            [
                [0.0 if can_follow(label, before) else -np.inf for label in labels]
                for before in labels
            ]
        )

    def decode(self, scores: np.ndarray[Any, Any]) -> list[int]:
        """Places of labels for log probabilities `(words, labels)`."""

        if not len(scores):
            return []
        best = scores[0] + self._first  # (labels,): of the best sequence that ends so
        came: list[np.ndarray[Any, Any]] = []
        for row in scores[1:]:
            through = best[:, None] + self._steps  # (before, label)
            came.append(through.argmax(axis=0))
            best = through.max(axis=0) + row
        path = [int(best.argmax())]
        for back in reversed(came):
            path.append(int(back[path[-1]]))
        return path[::-1]
