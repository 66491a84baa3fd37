"""One side of a store benchmark in a process of its own, so that its memory can be told apart.

`fill` loads a corpus into a side and builds its index; `ask` opens what was built, in a fresh
process, and searches it. A child is this module with a function's name and its arguments as JSON.
"""

from __future__ import annotations

import json
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np

from benchmarks.corpora import Corpus, Where, recall
from benchmarks.stores import LADDERS, SIDES, Ours, Side

K = 10
LOAD_BATCH = 5_000
TRIAL_QUERIES = 50  # enough to choose a setting by
TRIAL_S = 5.0
SEARCH_S = 30.0
FEWEST_QUERIES = 10  # of a side so slow that the time is up
FILL = "benchmarks.store_side:fill"
ASK = "benchmarks.store_side:ask"
OVERHEAD = "benchmarks.store_side:overhead"
_WARM_QUERIES = 3
_ENOUGH = 0.002  # recall within this of the wanted counts as equal


def in_child(function: str, **job: Any) -> dict[str, Any]:
    """The result of `module:function` in a fresh process. Raises: RuntimeError if that fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.store_side", function, json.dumps(job)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{function} of {job['side']}: exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def fill(side: str, corpus: str, folder: str) -> dict[str, Any]:
    """Load everything, build the index and close; how long each took."""
    items = Corpus(Path(corpus))
    shutil.rmtree(folder, ignore_errors=True)
    store = SIDES[side](Path(folder))
    load_s = 0.0
    for batch in items.batches(LOAD_BATCH):
        started = time.perf_counter()
        store.add(batch)
        load_s += time.perf_counter() - started
    started = time.perf_counter()
    store.build()
    build_s = time.perf_counter() - started
    store.close()
    files = [file for file in Path(folder).rglob("*") if file.is_file()]
    return {
        "load_s": round(load_s, 2),
        "build_s": round(build_s, 2),
        "disk_bytes": sum(file.stat().st_size for file in files),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def ask(
    side: str,
    corpus: str,
    folder: str,
    wanted: float,
    filters: Sequence[Where | None] = (None,),
    seconds: float = SEARCH_S,
) -> dict[str, Any]:
    """Open what was filled and search it under each filter, tuned to a wanted recall.

    The memory is what opening and searching added to the process, libraries apart.
    """
    items = Corpus(Path(corpus))
    queries = items.queries
    truths = {_key(where): items.truth(where, K) for where in filters}
    _import(side)
    before = _resident_bytes()
    started = time.perf_counter()
    store = SIDES[side](Path(folder))
    store.search(queries[0], K, None)
    open_s = time.perf_counter() - started
    searches = [
        _tuned(side, store, queries, where, truths[_key(where)], wanted, seconds)
        for where in filters
    ]
    result: dict[str, Any] = {
        "open_s": round(open_s, 3),
        "resident_bytes": _resident_bytes() - before,
        "searches": searches,
    }
    if isinstance(store, Ours):
        result["about"] = store.about()
    store.close()
    return result


def overhead(side: str, corpus: str, folder: str, seconds: float) -> dict[str, Any]:
    """Our search over the same index in raw FAISS, in turn.

    No query goes to both in a row: the second would find what it reads in the processor's caches.
    FAISS runs on one thread, as ours does. Told beside it: FAISS on all cores, and FAISS with a
    SELECT of the texts after it, which is what its users need as well.
    """
    assert side == "ours"
    import faiss

    from llmos.memory.folder import DATABASE_FILE

    store = Ours(Path(folder))
    raw, options = _same_index(Path(folder))
    texts = sqlite3.connect(Path(folder) / DATABASE_FILE, isolation_level=None)
    select = f"SELECT id, text FROM notes WHERE id IN ({', '.join('?' * K)})"
    cores = faiss.omp_get_max_threads()
    took: dict[str, list[float]] = {"ours": [], "faiss": [], "faiss_texts": [], "faiss_cores": []}
    ends = time.perf_counter() + seconds
    queries = Corpus(Path(corpus)).queries
    for place in range(len(queries)):
        first, second, third = (
            queries[(place + part * len(queries) // 3) % len(queries)].reshape(1, -1)
            for part in range(3)
        )
        times = [time.perf_counter()]
        store.search(first[0], K, None)
        times.append(time.perf_counter())
        faiss.omp_set_num_threads(1)
        times.append(time.perf_counter())
        ids = raw.search(second, K, params=options)[1][0].tolist()
        times.append(time.perf_counter())
        texts.execute(select, ids).fetchall()
        times.append(time.perf_counter())
        faiss.omp_set_num_threads(cores)
        raw.search(third, K, params=options)
        times.append(time.perf_counter())
        took["ours"].append(times[1] - times[0])
        took["faiss"].append(times[3] - times[2])
        took["faiss_texts"].append(times[4] - times[2])
        took["faiss_cores"].append(times[5] - times[4])
        if times[5] > ends:
            break
    texts.close()
    store.close()
    p50 = {name: latency(times[_WARM_QUERIES:])["p50_ms"] for name, times in took.items()}
    return {
        "overhead": round(p50["ours"] / p50["faiss"], 2),
        "overhead_ms": round(p50["ours"] - p50["faiss"], 3),
        "overhead_with_texts": round(p50["ours"] / p50["faiss_texts"], 2),
        "faiss_p50_ms": p50["faiss"],
        "faiss_all_cores_p50_ms": p50["faiss_cores"],
    }


def _same_index(folder: Path) -> tuple[Any, Any]:
    """The index that our store has saved, in raw FAISS, and how our searches use it."""
    import faiss

    from llmos.memory.folder import INDEX_FILE
    from llmos.memory.vectors_file import read_trailer

    trailer = read_trailer(folder / INDEX_FILE)
    assert trailer is not None, "the store was filled, and so has an index file"
    index: Any = faiss.read_index(str(folder / INDEX_FILE))
    if trailer["kind"] == "flat":
        return index, None
    return index, faiss.SearchParametersIVF(nprobe=trailer["probes"])


def _tuned(
    side: str,
    store: Side,
    queries: np.ndarray[Any, Any],
    where: Where | None,
    truth: np.ndarray[Any, Any],
    wanted: float,
    seconds: float,
) -> dict[str, Any]:
    """A side's figures at its fastest setting that gives the wanted recall, else at its best.

    Settings are tried from cheap to thorough, up to the first that is enough.
    """
    started = time.perf_counter()
    store.search(queries[0], K, where)
    first_s = time.perf_counter() - started
    trials: list[tuple[float, float, int]] = []  # (recall, p50, effort)
    for effort in LADDERS[side]:
        store.tune(effort)
        trial = timed(store.search, queries[:TRIAL_QUERIES], where, truth, TRIAL_S)
        trials.append((trial["recall"], trial["p50_ms"], effort))
        if effort and trial["recall"] >= wanted - _ENOUGH:
            break
    enough = [trial for trial in trials if trial[0] >= wanted - _ENOUGH]
    best = min(enough, key=lambda trial: trial[1]) if enough else max(trials)
    store.tune(best[2])
    figures = timed(store.search, queries, where, truth, seconds)
    return {"where": where, "effort": best[2], "first_ms": round(first_s * 1e3, 1), **figures}


def timed(
    search: Callable[[Any, int, Where | None], list[int]],
    queries: np.ndarray[Any, Any],
    where: Where | None,
    truth: np.ndarray[Any, Any],
    seconds: float,
) -> dict[str, Any]:
    """Recall and latency over one pass of the queries, or as many as fit into the time."""
    for query in queries[:_WARM_QUERIES]:
        search(query, K, where)
    found: list[list[int]] = []
    took: list[float] = []
    ends = time.perf_counter() + seconds
    for query in queries:
        started = time.perf_counter()
        found.append(search(query, K, where))
        took.append(time.perf_counter() - started)
        if len(found) >= FEWEST_QUERIES and time.perf_counter() > ends:
            break
    return {
        "recall": round(recall(found, truth), 4),
        **latency(took),
        "queries": len(found),
        "fewest": min(len(numbers) for numbers in found),
    }


def latency(took: Sequence[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds, of seconds."""
    p50, p99 = np.percentile(np.asarray(took) * 1e3, [50, 99])
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


def _import(side: str) -> None:
    """Import a side's libraries, so that the memory of its data can be told from theirs."""
    match side:
        case "chromadb":
            import chromadb  # noqa: F401
        case "lancedb":
            import lancedb  # noqa: F401
            import pyarrow  # noqa: F401
        case _:
            import faiss  # noqa: F401


def _key(where: Where | None) -> Where | None:
    return None if where is None else (where[0], where[1])  # JSON made it a list


def _resident_bytes() -> int:
    import psutil

    return psutil.Process().memory_info().rss


if __name__ == "__main__":
    print(json.dumps(resolve_name(sys.argv[1])(**json.loads(sys.argv[2]))))
