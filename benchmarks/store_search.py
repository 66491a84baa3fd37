"""Search by meaning in a million vectors: ours, chromadb, lancedb, sqlite-vec and FAISS.

Each side stores the same vectors with their texts and metadata, builds its index, closes, and is
opened again in a fresh process, whose memory is counted. Queries come one at a time and their texts
are read (FAISS has none). Ours chooses its own settings; every other side is tuned to the recall
that ours had, or to its best where it does not get there (`equal` says which). True neighbours come
from flat search. `overhead` compares ours with the very same index in raw FAISS on one thread, as
ours has, asked in turn with it in the same process; `overhead_with_texts` gives FAISS a SELECT of
the texts, which its users need as well.

Three kinds of data: clustered, without clusters, and real (paragraphs of docstrings, as many as are
embedded in ten minutes). `load_s` is until everything is durable, `build_s` until the index is
ready after that; chromadb builds while it loads.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.corpora import Corpus, Kind, make
from benchmarks.form import Floor, main_with
from benchmarks.store_side import ASK, FILL, OVERHEAD, K, in_child
from benchmarks.stores import PEERS, installed

ITEMS = 1_000_000
QUICK_ITEMS = 20_000
QUERIES = 500
WANTED_RECALL = 0.98
REAL_S = 600.0
QUICK_REAL_S = 4.0
KINDS: tuple[Kind, ...] = ("clustered", "unclustered", "real")
_EQUAL = 0.005  # a recall that is less by no more than this counts as equal
_OVERHEAD_QUERIES_S = 30.0
_OVERHEAD = (
    "overhead",
    "overhead_ms",
    "overhead_with_texts",
    "faiss_p50_ms",
    "faiss_all_cores_p50_ms",
)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    items = options.items or (QUICK_ITEMS if options.quick else ITEMS)
    real_s = options.real_s or (QUICK_REAL_S if options.quick else REAL_S)
    figures: dict[str, Any] = dict.fromkeys(floor.name for floor in FLOORS)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(options.keep or scratch)
        for kind in options.kinds:
            corpus = make(
                home / f"{kind}-{items}", kind, items=items, queries=QUERIES, seconds=real_s
            )
            corpus.truth(None, K)  # before the children that read it
            sides = measured(corpus, options.sides, Path(scratch))
            figures |= _figures(kind, corpus, sides)
    return figures


def measured(corpus: Corpus, names: Sequence[str], scratch: Path) -> dict[str, dict[str, Any]]:
    """Every side's figures; ours first, whose recall the others are tuned to."""
    wanted = WANTED_RECALL
    sides: dict[str, dict[str, Any]] = {}
    for name in names:
        job = {"side": name, "corpus": str(corpus.folder), "folder": str(scratch / name)}
        filled = in_child(FILL, **job)
        asked = in_child(ASK, wanted=wanted, **job)
        searched = asked.pop("searches")[0]
        if name == "ours":
            wanted = searched["recall"]
            asked |= in_child(OVERHEAD, seconds=_OVERHEAD_QUERIES_S, **job)
        sides[name] = {
            **searched,
            "equal": searched["recall"] >= wanted - _EQUAL,
            **filled,
            **asked,
        }
    return sides


def ahead(sides: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The p50 of the fastest peer with our recall, as a multiple of ours. None: no peer has it."""
    peers = [sides[name]["p50_ms"] for name in PEERS if name in sides and sides[name]["equal"]]
    return round(min(peers) / sides["ours"]["p50_ms"], 2) if peers and "ours" in sides else None


def _figures(kind: Kind, corpus: Corpus, sides: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    figures: dict[str, Any] = {f"{kind}_items": corpus.items, f"{kind}_ahead": ahead(sides)}
    for name, side in sides.items():
        for key in ("recall", "p50_ms", "p99_ms", "load_s", "build_s"):
            figures[f"{kind}_{name}_{key}"] = side[key]
        figures[f"{kind}_{name}_resident_mb"] = round(side["resident_bytes"] / 1e6)
    for key in _OVERHEAD:
        figures[f"{kind}_{key}"] = sides.get("ours", {}).get(key)
    figures[f"{kind}_sides"] = dict(sides)
    return figures


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    made.add_argument("--quick", action="store_true", help=f"{QUICK_ITEMS:,} items")
    made.add_argument("--items", type=int, help=f"default {ITEMS:,}")
    made.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    made.add_argument("--real-s", type=float, help="seconds for embedding real texts")
    made.add_argument("--keep", metavar="FOLDER", help="keep the vectors here and use them again")
    names = ["ours", "faiss_flat", *filter(installed, PEERS)]
    made.add_argument("--sides", nargs="+", choices=names, default=names)
    return made


FLOORS = (
    Floor("clustered_ours_recall", ">=", 0.98),
    Floor("clustered_ours_p50_ms", "<", 3.0),
    Floor("clustered_overhead", "<=", 1.3),
    Floor("clustered_ours_build_s", "<", 180.0),
    Floor("clustered_ahead", ">", 1.0),
    Floor("unclustered_ahead", ">", 1.0),
    Floor("real_ahead", ">", 1.0),
)

if __name__ == "__main__":
    main_with(parser(), "store_search", measure, FLOORS)
