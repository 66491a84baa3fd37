"""BIO labels: what is decoded is always legal, and as good as any legal sequence."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.bio_labels import BioDecoder, all_labels, can_follow, is_bio, repaired

LABELS = ("O", "B-a", "I-a", "B-b", "I-b")
rows = st.lists(st.lists(st.floats(-9, 0), min_size=5, max_size=5), min_size=1, max_size=4)


def is_legal(labels: tuple[str, ...]) -> bool:
    return all(
        can_follow(one, before) for before, one in itertools.pairwise((None, *labels)) if one
    )


@given(rows)
def test_the_decoded_sequence_is_the_best_legal_one(scores: list[list[float]]) -> None:
    table = np.array(scores)
    found = BioDecoder(LABELS).decode(table)
    assert is_legal(tuple(LABELS[place] for place in found))
    best = max(
        sum(table[word, place] for word, place in enumerate(path))
        for path in itertools.product(range(5), repeat=len(scores))
        if is_legal(tuple(LABELS[place] for place in path))
    )
    assert sum(table[word, place] for word, place in enumerate(found)) == np.float64(best)


@given(st.lists(st.sampled_from(LABELS), max_size=8))
def test_a_repaired_sequence_is_legal_and_repairing_again_changes_nothing(
    labels: list[str],
) -> None:
    found = repaired(labels)
    assert is_legal(found)
    assert repaired(found) == found
    assert [one[2:] for one in found] == [one[2:] for one in labels]


def test_no_words_have_no_labels() -> None:
    assert BioDecoder(LABELS).decode(np.zeros((0, 5))) == []


def test_each_kind_can_begin_and_go_on() -> None:
    assert all_labels(["I-b", "O", "B-a"]) == ("O", "B-a", "I-a", "B-b", "I-b")
    written = ("O", "B-a", "B-", "a", "I-a")
    assert [is_bio(label) for label in written] == [True, True, False, False, True]
