"""Filters that let through half of the items, one in a hundred, and one in ten thousand.

The same stores as in `store_search`, over clustered vectors. A filter is an equality on metadata
that says nothing of where an item lies; `part` is one that does: it lets through a single cluster,
far from nearly all queries. The k nearest are wanted among what is let through, and k of them
where k exist: `fewest` is the least that any query got. `first_ms` is the first search with a
filter in a process, which may have to find out what it lets through. Other sides are tuned to a
recall of 0.95, or to their best.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.corpora import Where, make
from benchmarks.form import Floor, main_with
from benchmarks.store_side import ASK, FILL, K, in_child
from benchmarks.stores import PEERS, installed

ITEMS = 1_000_000
QUICK_ITEMS = 20_000
QUERIES = 200
WANTED_RECALL = 0.95
FILTERS: dict[str, Where] = {
    "50": ("half", 1),
    "1": ("percent", 7),
    "0.01": ("myriad", 7),
    "part": ("part", 3),
}
_SEARCH_S = 15.0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    items = options.items or (QUICK_ITEMS if options.quick else ITEMS)
    figures: dict[str, Any] = {"items": items, **dict.fromkeys(floor.name for floor in FLOORS)}
    short = 0
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(options.keep or scratch)
        corpus = make(home / f"filter-{items}", "clustered", items=items, queries=QUERIES)
        exist = {name: int(corpus.matching(where).sum()) for name, where in FILTERS.items()}
        for where in FILTERS.values():
            corpus.truth(where, K)  # before the children that read it
        for side in options.sides:
            job = {"side": side, "corpus": str(corpus.folder), "folder": str(Path(scratch) / side)}
            filled = in_child(FILL, **job)
            asked = in_child(
                ASK,
                wanted=WANTED_RECALL,
                filters=list(FILTERS.values()),
                seconds=_SEARCH_S,
                **job,
            )
            figures[f"{side}_load_s"] = filled["load_s"]
            for (name, count), searched in zip(exist.items(), asked["searches"], strict=True):
                for key in ("recall", "first_ms", "p50_ms", "p99_ms", "fewest"):
                    figures[f"{side}_{name}_{key}"] = searched[key]
                short += side == "ours" and searched["fewest"] < min(K, count)
    figures["ours_short"] = short if "ours" in options.sides else None
    return {**figures, "matching": exist}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    made.add_argument("--quick", action="store_true", help=f"{QUICK_ITEMS:,} items")
    made.add_argument("--items", type=int, help=f"default {ITEMS:,}")
    made.add_argument("--keep", metavar="FOLDER", help="keep the vectors here and use them again")
    names = ["ours", *filter(installed, PEERS)]
    made.add_argument("--sides", nargs="+", choices=names, default=names)
    return made


FLOORS = (
    *(Floor(f"ours_{name}_recall", ">=", WANTED_RECALL) for name in FILTERS),
    Floor("ours_short", "==", 0),
)

if __name__ == "__main__":
    main_with(parser(), "store_filter", measure, FLOORS)
