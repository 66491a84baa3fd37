"""The store benchmarks in their small form: sides agree with flat search, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import store_search, store_write
from benchmarks.corpora import DIMENSIONS, Corpus, Where, make, recall
from benchmarks.crash import Known
from benchmarks.store_side import K, timed
from benchmarks.stores import LADDERS, SIDES, installed

HOME = Path(__file__).parents[2]
ITEMS = 1_500
FILTERS: list[Where | None] = [None, ("half", 1), ("percent", 7), ("myriad", 11)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make(tmp_path_factory.mktemp("corpus"), "clustered", items=ITEMS, queries=20)


# --- the data ---


def test_a_corpus_is_the_same_for_everyone_and_is_made_once(corpus: Corpus, tmp_path: Path) -> None:
    again = make(tmp_path, "clustered", items=ITEMS, queries=20)
    assert np.array_equal(again.vectors(0, ITEMS), corpus.vectors(0, ITEMS))
    written = (tmp_path / "vectors.f32").stat().st_mtime_ns
    make(tmp_path, "clustered", items=ITEMS, queries=20)
    assert (tmp_path / "vectors.f32").stat().st_mtime_ns == written


def test_batches_hold_every_item_once_with_what_its_number_says(corpus: Corpus) -> None:
    batches = list(corpus.batches(400))
    assert [batch.first for batch in batches] == [0, 400, 800, 1200]
    assert sum(len(batch.texts) for batch in batches) == ITEMS
    assert batches[1].vectors.shape == (400, DIMENSIONS)
    assert batches[1].texts[3] == corpus.text(403)
    halves = [entry["half"] for batch in batches for entry in batch.metadata]
    assert np.array_equal(np.array(halves) == 1, corpus.matching(("half", 1)))


@pytest.mark.parametrize("where", FILTERS)
def test_the_truth_is_what_all_products_say(corpus: Corpus, where: Where | None) -> None:
    scores = corpus.queries @ corpus.vectors(0, ITEMS).T
    scores[:, ~corpus.matching(where)] = -np.inf
    matching = int(corpus.matching(where).sum())
    for row, truth in zip(scores, corpus.truth(where, K), strict=True):
        best = np.argsort(-row)[: min(K, matching)]
        assert set(truth[truth >= 0].tolist()) == set(best.tolist())


def test_recall_counts_only_neighbours_that_exist() -> None:
    truth = np.array([[1, 2, -1], [3, 4, 5]])
    assert recall([[1, 2], [3, 9]], truth) == pytest.approx(3 / 5)
    assert recall([[]], np.array([[-1]])) == 1.0


# --- the sides ---


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.filterwarnings("ignore")  # the peers' own
def test_a_side_finds_what_flat_search_finds(side: str, corpus: Corpus, tmp_path: Path) -> None:
    if not installed(side):
        pytest.skip(f"{side} is not installed")
    store = SIDES[side](tmp_path / "side")
    for batch in corpus.batches(500):
        store.add(batch)
    store.build()
    store.close()
    store = SIDES[side](tmp_path / "side")
    store.tune(LADDERS[side][-1])
    for where in FILTERS if side != "faiss_flat" else [None]:
        exist = int(corpus.matching(where).sum())
        figures = timed(store.search, corpus.queries, where, corpus.truth(where, K), 10.0)
        assert figures["recall"] >= 0.95
        assert figures["fewest"] == min(K, exist)
    if side != "faiss_flat":
        nearest = store.search(corpus.queries[0], K, None)
        store.delete(nearest[:3])
        assert not set(nearest[:3]) & set(store.search(corpus.queries[0], K, None))
    store.close()


def test_only_sides_with_our_recall_are_compared() -> None:
    sides = {
        "ours": {"p50_ms": 2.0, "equal": True},
        "chromadb": {"p50_ms": 3.0, "equal": True},
        "lancedb": {"p50_ms": 1.0, "equal": False},
        "faiss_flat": {"p50_ms": 0.5, "equal": True},
    }
    assert store_search.ahead(sides) == 1.5
    assert store_search.ahead({"ours": sides["ours"], "lancedb": sides["lancedb"]}) is None


def test_adds_of_several_agents_are_all_found(corpus: Corpus, tmp_path: Path) -> None:
    figures = store_write.writes("ours", str(corpus.folder), str(tmp_path / "side"), 0.1)
    for agents in store_write.AGENTS:
        for name in (f"single_{agents}", f"batched_{agents}"):
            assert figures[f"{name}_per_s"] > 0
            assert figures[f"{name}_unfound"] == 0


# --- kills ---


def test_the_judge_of_a_crash_tells_what_is_wrong() -> None:
    known = Known()
    for verb, names in (("add", {"a", "b"}), ("added", {"a", "b"}), ("delete", {"b"})):
        known.hear(verb, names)
    known.hear("deleted", {"b"})
    known.hear("add", {"c", "d"})
    wrong = known.judge({"b", "c", "x"})
    assert wrong == {"lost": 1, "undead": 1, "torn": 1, "strange": 1}
    assert known.live == {"c"}


def test_what_was_under_way_may_be_there_or_not() -> None:
    for found in ({"a"}, {"a", "c", "d"}):
        known = Known(live={"a"}, adding={"c", "d"})
        assert not +known.judge(found)
    for found in (set[str](), {"a", "b"}):
        known = Known(live={"a", "b"}, deleting={"a", "b"})
        assert not +known.judge(found)


def test_a_store_killed_under_load_loses_nothing() -> None:
    """In a process that nothing else has started threads in: it forks."""
    command = [sys.executable, "-m", "benchmarks.crash", "--kills", "6", "--json"]
    done = subprocess.run(command, cwd=HOME, stdout=subprocess.PIPE, check=True, timeout=120)
    figures = json.loads(done.stdout)
    assert figures["acknowledged"] > 0
    for name in ("lost", "undead", "torn", "strange", "unlike"):
        assert figures[name] == 0
