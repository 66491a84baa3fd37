"""The questions of the benchmark `hybrid`, and how it counts."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.hybrid import EACH, by_ranks, figures, ndcg, recall
from benchmarks.questions import IDENTIFIER, NUMBER, Document, Question, documents, questions


@cache
def real() -> tuple[list[Document], list[Question]]:
    texts = documents()
    return texts, questions(texts, each=EACH)


def test_there_are_enough_questions_that_judge_and_each_is_asked_once() -> None:
    _, asked = real()
    judging = [question for question in asked if not question.is_for_tuning]
    assert len(judging) >= 300
    assert {question.kind for question in judging} == set(EACH)
    assert len({question.text for question in asked}) == len(asked)


def test_a_document_has_lost_the_sentence_that_is_asked_for() -> None:
    texts, asked = real()
    for question in asked:
        document = texts[question.answer]
        if question.kind == "purpose":
            assert document.asked not in " ".join(document.text.split())


def test_an_exact_name_or_number_stands_in_its_answer_only() -> None:
    texts, asked = real()
    for kind, form in (("name", IDENTIFIER), ("number", NUMBER)):
        held = [{word.lower() for word in form.findall(document.text)} for document in texts]
        for question in (question for question in asked if question.kind == kind):
            only = [
                word
                for word in form.findall(question.text)
                if [number for number, words in enumerate(held) if word.lower() in words]
                == [question.answer]
            ]
            assert only, question


def test_recall_and_ndcg_of_known_ranks() -> None:
    assert recall([1, None, 10, 3]) == 0.75
    assert ndcg([1, None, 3]) == pytest.approx((1 + 0 + 0.5) / 3)


def test_reciprocal_ranks_put_first_what_both_have() -> None:
    assert by_ranks([1, 2, 3], [4, 2]) == [2, 1, 4, 3]


def test_the_figures_are_of_the_questions_that_judge() -> None:
    asked = [Question("purpose", f"question {number}?", number) for number in range(40)]
    ranks = [1 if one.is_for_tuning else 2 for one in asked]
    found = figures(
        asked,
        {"hybrid": list(ranks), "dense": list(ranks), "lexical": [None] * 40, "rrf": list(ranks)},
    )
    assert found["hybrid_recall"] == 1.0
    assert found["hybrid_ndcg"] == pytest.approx(0.6309, abs=1e-4)
    assert found["lexical_recall"] == 0.0
    assert found["ndcg_over_best_other"] == 0.0
    assert found["questions"] + found["tuning_questions"] == 40
