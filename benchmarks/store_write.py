"""Adds that are acknowledged as kept, one at a time and a hundred at a time, from 1 and 8 agents.

Each side is a store of its own process that holds some items already, and is searched twenty times
a second while agents (threads) add for a few seconds; each agent adds again as soon as its last add
has returned. What an acknowledgement is worth differs (`stores.py` says how we know): an add to
lancedb survives a killed process, one to any other side a power cut as well. The floors compare
with the best of those that are as durable as ours. Beside them, `all_ratio` compares with everyone,
and `text_ratio` with sqlite-vec and an FTS5 table of the texts: ours can be searched by words.

A sample of the adds is looked for afterwards by their own vectors; `unfound` counts the misses.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import Batch, Corpus, make
from benchmarks.form import Floor, main_with
from benchmarks.store_side import in_child, latency
from benchmarks.stores import DURABLE, PEERS, SIDES, Side, installed

HELD_ITEMS = 10_000
QUICK_HELD_ITEMS = 2_000
SECONDS = 4.0
QUICK_SECONDS = 0.5
AGENTS = (1, 8)
BATCHES = (1, 100)
SEARCHES_PER_S = 20
K = 10
_PROBES = 20


class Numbers:
    """Gives each add numbers of its own."""

    def __init__(self, first: int) -> None:
        self._next = first
        self._lock = threading.Lock()

    def take(self, count: int) -> int:
        with self._lock:
            first = self._next
            self._next += count
            return first


def writes(side: str, corpus: str, folder: str, seconds: float) -> dict[str, Any]:
    """Every combination of agents and batch size on one side."""
    items = Corpus(Path(corpus))
    store = SIDES[side](Path(folder))
    for batch in items.batches(1_000):
        store.add(batch)
    store.build()
    numbers = Numbers(items.items)
    figures: dict[str, Any] = {}
    for agents in AGENTS:
        for size in BATCHES:
            name = f"{'single' if size == 1 else 'batched'}_{agents}"
            figures |= _case(store, items, numbers, name, agents, size, seconds)
    store.close()
    return figures


def _case(
    store: Side,
    items: Corpus,
    numbers: Numbers,
    name: str,
    agents: int,
    size: int,
    seconds: float,
) -> dict[str, Any]:
    added: list[Batch] = []
    took: list[float] = []
    failures: list[BaseException] = []
    searched: list[float] = []
    start = threading.Barrier(agents + 2)
    is_over = threading.Event()

    def agent(place: int) -> None:
        draw = np.random.default_rng((place, size, agents))
        start.wait()
        while not is_over.is_set():
            batch = _fresh(items, draw, numbers.take(size), size)
            started = time.perf_counter()
            try:
                store.add(batch)
            except Exception as problem:  # noqa: BLE001 - told to the main thread, which raises
                failures.append(problem)
                return
            took.append(time.perf_counter() - started)
            added.append(batch)

    def searcher() -> None:
        start.wait()
        turn = 0
        while not is_over.wait(1 / SEARCHES_PER_S):
            query = items.queries[turn % len(items.queries)]
            started = time.perf_counter()
            store.search(query, K, None)
            searched.append(time.perf_counter() - started)
            turn += 1

    threads = [threading.Thread(target=agent, args=(place,)) for place in range(agents)]
    threads.append(threading.Thread(target=searcher))
    for thread in threads:
        thread.start()
    start.wait()
    started = time.perf_counter()
    is_over.wait(seconds)
    is_over.set()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    if failures:
        raise failures[0]
    count = sum(len(batch.texts) for batch in added)
    return {
        f"{name}_per_s": round(count / elapsed, 1),
        f"{name}_add_p99_ms": latency(took)["p99_ms"],
        f"{name}_search_p50_ms": latency(searched)["p50_ms"] if searched else None,
        f"{name}_unfound": _unfound(store, added),
    }


def _fresh(items: Corpus, draw: np.random.Generator, first: int, size: int) -> Batch:
    """New items near to held ones."""
    rows = items.vectors(int(draw.integers(0, items.items - size)), size)
    rows = rows + 0.02 * draw.standard_normal(rows.shape, np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    texts = [items.text(number) for number in range(first, first + size)]
    metadata = [
        {"half": number % 2, "percent": number % 100, "myriad": number % 10_000, "part": 0}
        for number in range(first, first + size)
    ]
    return Batch(first, rows, texts, metadata)


def _unfound(store: Side, added: list[Batch]) -> int:
    """How many of a sample of acknowledged adds are not found by their own vector."""
    draw = np.random.default_rng(7)
    lost = 0
    for place in draw.integers(0, len(added), _PROBES):
        batch = added[place]
        lost += batch.first not in store.search(batch.vectors[0], K, None)
    return lost


def measure(options: argparse.Namespace) -> dict[str, Any]:
    held = QUICK_HELD_ITEMS if options.quick else HELD_ITEMS
    seconds = QUICK_SECONDS if options.quick else SECONDS
    figures: dict[str, Any] = dict.fromkeys(floor.name for floor in FLOORS)
    sides: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        corpus = make(Path(folder) / "corpus", "clustered", items=held, queries=100)
        for side in options.sides:
            sides[side] = in_child(
                "benchmarks.store_write:writes",
                side=side,
                corpus=str(corpus.folder),
                folder=str(Path(folder) / side),
                seconds=seconds,
            )
    for agents in AGENTS:
        for name in (f"single_{agents}", f"batched_{agents}"):
            key = f"{name}_per_s"
            figures[f"{name}_ratio"] = _ratio(sides, key, [*filter(DURABLE.get, PEERS)])
            figures[f"{name}_all_ratio"] = _ratio(sides, key, PEERS)
            figures[f"{name}_text_ratio"] = _ratio(sides, key, ["sqlite_vec_text"])
            for side, values in sides.items():
                for key in ("per_s", "add_p99_ms", "search_p50_ms", "unfound"):
                    figures[f"{side}_{name}_{key}"] = values[f"{name}_{key}"]
    for side in sides:
        figures[f"{side}_is_durable"] = DURABLE[side]
    return figures


def _ratio(sides: Mapping[str, Mapping[str, Any]], key: str, names: Sequence[str]) -> float | None:
    """Ours over the best peer among some sides."""
    peers = [sides[name][key] for name in names if name in sides]
    return round(sides["ours"][key] / max(peers), 2) if peers and "ours" in sides else None


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    made.add_argument("--quick", action="store_true", help="few items, half a second a case")
    names = ["ours", *filter(installed, (*PEERS, "sqlite_vec_text"))]
    made.add_argument("--sides", nargs="+", choices=names, default=names)
    return made


FLOORS = tuple(
    Floor(f"{name}_{agents}_ratio", ">=", 1.0)
    for agents in AGENTS
    for name in ("single", "batched")
)

if __name__ == "__main__":
    main_with(parser(), "store_write", measure, FLOORS)
