"""Ranking: queries of words, the weight of age, and hits unlike each other.

Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

MAX_QUERY_TERMS = 64  # more terms cost time and hardly change a BM25 ranking
_TERM = re.compile(r"\w+")

# English words that stand in most texts. They say nothing of what a text is about, and looking them
# up costs in proportion to how many have them: 40,000 texts took 36 ms with four of them in the
# query, 0.5 ms without.
_FUNCTION_WORDS = frozenset(
    {
        *("a", "about", "all", "an", "and", "any", "are", "as", "at", "be", "been", "but", "by"),
        *("can", "could", "did", "do", "does", "for", "from", "had", "has", "have", "he", "her"),
        *("his", "how", "i", "if", "in", "into", "is", "it", "its", "me", "my", "not", "of", "on"),
        *("or", "our", "she", "should", "so", "than", "that", "the", "their", "them", "then"),
        *("there", "these", "they", "this", "those", "to", "us", "was", "we", "were", "what"),
        *("when", "where", "which", "who", "whom", "whose", "why", "will", "with", "would", "you"),
        *("your", "d", "ll", "m", "re", "s", "t", "ve"),
    }
)


def query_terms(text: str) -> list[str]:
    """The words of a text that a search looks for, each once.

    Function words count only where there are no others, or in capitals among small letters: "WHO".
    """
    found = _TERM.findall(text)
    is_shouted = not any(term.islower() for term in found)
    telling = [
        term
        for term in found
        if term.lower() not in _FUNCTION_WORDS
        or (term.isupper() and len(term) > 1 and not is_shouted)
    ]
    return list(dict.fromkeys(term.lower() for term in telling or found))[:MAX_QUERY_TERMS]


def match_any(terms: Sequence[str]) -> str:
    """An FTS5 query for texts with any of some words, at least one.

    Each word is quoted, so that FTS5's operators and punctuation are plain text. Any of them, not
    all: a question has words that its answer lacks, and BM25 ranks by how many match and how rare.
    """
    return " OR ".join(f'"{term}"' for term in terms)


def faded(score: float, age_s: float, half_life_s: float) -> float:
    """A score halved for each half-life of age; what lies ahead has no age.

    A score that is not positive stays: halving it would raise it.
    """
    return score * recency(age_s, half_life_s) if score > 0 else score


def recency(age_s: float, half_life_s: float) -> float:
    """The weight of an age: 1 when new, half of it after each half-life."""
    return float(2.0 ** -(max(age_s, 0.0) / half_life_s))


class Chosen(NamedTuple):
    """A candidate's place in a diverse selection; `likeness` is its cosine to the likest before."""

    place: int
    score: float
    likeness: float


def diverse(
    relevance: Sequence[float], vectors: Matrix, k: int, *, diversity: float
) -> list[Chosen]:
    """The k candidates of maximal marginal relevance, the most relevant first.

    Each next one has the largest `(1 - diversity) * relevance - diversity * likeness`, where
    relevance is brought to 0..1 over the candidates and likeness is the largest cosine to one that
    was chosen, at least 0. These scores never rise from one to the next. `vectors` (n, dimensions)
    are of unit length.
    Source: J. Carbonell, J. Goldstein, "The Use of MMR, Diversity-Based Reranking for Reordering
    Documents and Producing Summaries" (SIGIR 1998).
    """
    if not relevance:
        return []
    scores = np.asarray(relevance, dtype=np.float64)
    spread = scores.max() - scores.min()
    worth = (scores - scores.min()) / spread if spread > 0 else np.ones_like(scores)
    likeness = np.zeros(len(scores))
    is_left = np.ones(len(scores), dtype=bool)
    chosen: list[Chosen] = []
    while len(chosen) < min(k, len(scores)):
        value = (1.0 - diversity) * worth - diversity * likeness
        # The best comes first even where relevance has no weight.
        index = int(np.argmax(np.where(is_left, value, -np.inf) if chosen else scores))
        chosen.append(Chosen(index, float(value[index]), float(likeness[index])))
        is_left[index] = False
        likeness = np.maximum(likeness, vectors @ vectors[index])
    return chosen
