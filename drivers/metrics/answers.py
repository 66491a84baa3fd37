"""How near a generated answer is to the wanted one: the same words, or the same order of words.

Owns exact match and ROUGE-L. Words are runs of letters and digits without regard to case, so that
neither punctuation nor spacing counts.

Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from llmos.drivers.metrics.bootstrap import Measure, mean_of
from llmos.syscalls.errors import SyscallError

_WORD = re.compile(r"\w+")


class AnswerScores(NamedTuple):
    """Means over rows."""

    exact_match: float
    rouge_l: float

    def metrics(self) -> dict[str, float]:
        """The figures by name."""
        return self._asdict()


def score_answers(wanted: Sequence[str], answers: Sequence[str]) -> AnswerScores:
    """Compare answers with the wanted ones. Raises: SyscallError("invalid") as the measures do."""
    measures = answer_measures(wanted, answers)
    return AnswerScores(**{name: measure.value for name, measure in measures.items()})


def answer_measures(wanted: Sequence[str], answers: Sequence[str]) -> dict[str, Measure]:
    """The figures of `score_answers` for intervals and paired comparisons.

    Raises: SyscallError("invalid") for no rows or unequal numbers of them.
    """
    if len(wanted) != len(answers):
        raise SyscallError(
            "invalid",
            f"{len(answers)} answers for {len(wanted)} rows; each row needs one",
            field="predictions",
        )
    pairs = list(zip(wanted, answers, strict=True))
    return {
        "exact_match": mean_of([is_exact(want, got) for want, got in pairs]),
        "rouge_l": mean_of([rouge_l(want, got) for want, got in pairs]),
    }


def is_exact(wanted: str, answer: str) -> bool:
    """Whether two texts have the same words in the same order."""
    return _words(wanted) == _words(answer)


def rouge_l(wanted: str, answer: str) -> float:
    """F1 of the longest common subsequence of words, 0 to 1; two texts without words are equal."""
    want, got = _words(wanted), _words(answer)
    if not want and not got:
        return 1.0
    return 2 * common_length(want, got) / (len(want) + len(got))


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence, in time first x second."""
    lengths = [0] * (len(second) + 1)
    for one in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if one == other else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
