"""Hybrid search against meaning alone and words alone, on real documents with known answers.

The documents (the Python standard library's docstrings, this project's docs) and the questions are
made by rule; `questions.py` says how. All are remembered by one kernel with the default embedding
model, and each question is asked in the three modes through `os.retrieve`. A question has one
answer: recall@10 is how often it is among ten hits, nDCG@10 is 1 / log2(1 + its rank), else 0.
Half of the questions, drawn by a hash, were used to tune the fusion; the figures are of the other
half, those of the tuning half stand beside them. `rrf` is reciprocal rank fusion (constant 60) of
the best 50 of both, for comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import llmos
from benchmarks.form import Floor, main_with
from benchmarks.questions import Document, Kind, Question, documents, questions
from llmos.agents.handle import OS
from llmos.syscalls.calls import Note

Mode = Literal["hybrid", "dense", "lexical", "rrf"]
Ranks = dict[Mode, list[int | None]]  # the rank of each question's answer; None: not among the hits

MODES: tuple[Mode, ...] = ("hybrid", "dense", "lexical", "rrf")
K = 10
RRF_DEPTH, RRF_CONSTANT = 50, 60
EACH: Mapping[Kind, int] = {"purpose": 400, "heading": 100, "name": 150, "number": 100}
QUICK_SHARE = 8  # a quick run asks one question of so many, of one document of so many
_AT_ONCE = 200


async def ranks(os: OS, texts: Sequence[Document], asked: Sequence[Question]) -> Ranks:
    """Remember the documents and ask every question in every mode."""
    numbers: dict[int, int] = {}  # a note's id to its document's number
    for first in range(0, len(texts), _AT_ONCE):
        part = texts[first : first + _AT_ONCE]
        notes = [Note(text=document.text, source=document.name) for document in part]
        stored = await os.remember(notes, namespace="documents")
        numbers.update(zip(stored.ids, range(first, first + len(part)), strict=True))
    found: Ranks = {mode: [] for mode in MODES}
    for question in asked:
        orders: dict[Mode, list[int]] = {}
        for mode, k in (("hybrid", K), ("dense", RRF_DEPTH), ("lexical", RRF_DEPTH)):
            hits = await os.retrieve(question.text, k=k, mode=mode, namespaces=["documents"])
            orders[mode] = [numbers[hit.id] for hit in hits]
        orders["rrf"] = by_ranks(orders["dense"], orders["lexical"])
        for mode, order in orders.items():
            best = order[:K]
            is_in = question.answer in best
            found[mode].append(best.index(question.answer) + 1 if is_in else None)
    return found


def by_ranks(*rankings: Sequence[int]) -> list[int]:
    """Reciprocal rank fusion. Source: Cormack, Clarke, Büttcher, SIGIR 2009."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1 / (RRF_CONSTANT + rank)
    return sorted(scores, key=lambda item: (-scores[item], item))


def recall(places: Sequence[int | None]) -> float:
    return sum(place is not None for place in places) / len(places)


def ndcg(places: Sequence[int | None]) -> float:
    return sum(1 / math.log2(1 + place) for place in places if place is not None) / len(places)


def figures(asked: Sequence[Question], found: Ranks) -> dict[str, Any]:
    """Both measures of each mode on the judging questions, whole and by kind, and the others."""
    judging = [not question.is_for_tuning for question in asked]

    def of(mode: Mode, chosen: Sequence[bool]) -> list[int | None]:
        return [place for place, is_in in zip(found[mode], chosen, strict=True) if is_in]

    shown: dict[str, Any] = {"questions": sum(judging), "tuning_questions": judging.count(False)}
    for mode in MODES:
        shown[f"{mode}_recall"] = round(recall(of(mode, judging)), 4)
        shown[f"{mode}_ndcg"] = round(ndcg(of(mode, judging)), 4)
    for name in ("recall", "ndcg"):
        rival = max(shown[f"{mode}_{name}"] for mode in ("dense", "lexical"))
        shown[f"{name}_over_best_other"] = round(shown[f"hybrid_{name}"] - rival, 4)
    for kind in EACH:
        chosen = [is_in and q.kind == kind for q, is_in in zip(asked, judging, strict=True)]
        for mode in MODES if any(chosen) else ():
            places = of(mode, chosen)
            shown[f"{kind}_{mode}"] = f"recall {recall(places):.3f}, nDCG {ndcg(places):.3f}"
    for mode in MODES:
        tuning = of(mode, [not is_in for is_in in judging])
        shown[f"tuning_{mode}"] = f"recall {recall(tuning):.3f}, nDCG {ndcg(tuning):.3f}"
    return shown


async def run(texts: Sequence[Document], asked: Sequence[Question], home: Path) -> dict[str, Any]:
    async with llmos.boot(home=home) as kernel:
        started = time.perf_counter()
        found = await ranks(kernel.os, texts, asked)
        seconds = time.perf_counter() - started
    return {"documents": len(texts), **figures(asked, found), "seconds": round(seconds, 1)}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    texts = documents()
    each = dict(EACH)
    if options.quick:
        texts = texts[::QUICK_SHARE]
        each = {kind: most // QUICK_SHARE for kind, most in each.items()}
    asked = questions(texts, each=each)
    if options.home is not None:
        return asyncio.run(run(texts, asked, options.home))
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run(texts, asked, Path(folder)))


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--quick", action="store_true", help="an eighth of documents and questions")
    found.add_argument(
        "--home", type=Path, metavar="FOLDER", help="keep what is embedded, for a later run"
    )
    return found


FLOORS = (Floor("recall_over_best_other", ">=", 0.0), Floor("ndcg_over_best_other", ">", 0.0))

if __name__ == "__main__":
    main_with(parser(), "hybrid", measure, FLOORS)
