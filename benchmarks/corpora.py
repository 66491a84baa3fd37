"""Vectors to store and to ask for, the same for a seed on every machine, made in chunks.

A corpus is a folder of plain float32 files, so that a million vectors are never in memory at once
and no side is charged for them. Three kinds:

- `clustered`: unit vectors around centres of unequal sizes, a cosine of about 0.8 to their own.
- `unclustered`: directions drawn evenly from the sphere. Nothing is near to anything, and no index
  can leave much out: the worst that data can be.
- `real`: paragraphs of the docstrings of the installed Python packages, embedded by the default
  embedding model.

An item's text and metadata follow from its number. The metadata's `half`, `percent` and `myriad`
have 2, 100 and 10,000 values, drawn for each item alone; `part` names the item's cluster, so that
a filter by it asks for what may be far from the query.
"""

from __future__ import annotations

import json
import random
import re
import sysconfig
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from benchmarks.workload import words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

Kind = Literal["clustered", "unclustered", "real"]
Where = tuple[str, int]  # a metadata field and the value that it must have

DIMENSIONS = 384
CHUNK = 20_000
CLUSTER_ITEMS = 250  # a cluster's size on average
_SPREAD = 0.75  # the length of what is added to a centre
_WORDS_OF_TEXT = 12
_REAL_BATCH = 512
_PARAGRAPH = re.compile(r'"""(.*?)"""', re.DOTALL)
_PARAGRAPH_CHARACTERS = range(60, 600)


class Batch(NamedTuple):
    """Items in the order of their numbers, which begin at `first`."""

    first: int
    vectors: Matrix
    texts: list[str]
    metadata: list[dict[str, int]]


class Corpus:
    """The corpus in a folder that `make` has filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        about = json.loads((folder / "about.json").read_text())
        self.kind: Kind = about["kind"]
        self.items: int = about["items"]

    @cached_property
    def queries(self) -> Matrix:
        """Unit vectors that are not among the items `(queries, DIMENSIONS)`."""
        return np.fromfile(self.folder / "queries.f32", np.float32).reshape(-1, DIMENSIONS)

    @cached_property
    def _texts(self) -> list[str] | None:
        path = self.folder / "texts.json"
        return json.loads(path.read_text()) if path.exists() else None

    @cached_property
    def _parts(self) -> NDArray[np.int32]:
        return np.fromfile(self.folder / "parts.i32", np.int32)

    def vectors(self, first: int, count: int) -> Matrix:
        """Vectors of some items, read from the file."""
        row_bytes = DIMENSIONS * 4
        return np.fromfile(
            self.folder / "vectors.f32",
            np.float32,
            count=min(count, self.items - first) * DIMENSIONS,
            offset=first * row_bytes,
        ).reshape(-1, DIMENSIONS)

    def batches(self, size: int, first: int = 0) -> Iterator[Batch]:
        """The items from `first` on, `size` at a time."""
        for start in range(first, self.items, size):
            vectors = self.vectors(start, size)
            numbers = range(start, start + len(vectors))
            values = self._values(start, len(vectors))
            fields = [column.tolist() for column in values.values()]
            metadata = [
                dict(zip(values, entry, strict=True)) for entry in zip(*fields, strict=True)
            ]
            yield Batch(start, vectors, [self.text(number) for number in numbers], metadata)

    def text(self, number: int) -> str:
        if self._texts is not None:
            return self._texts[number]
        return f"item {number}: {words(random.Random(number), _WORDS_OF_TEXT)}"

    def matching(self, where: Where | None) -> NDArray[np.bool_]:
        """Which items a filter lets through `(items,)`."""
        if where is None:
            return np.ones(self.items, np.bool_)
        field, value = where
        return self._values(0, self.items)[field] == value

    def _values(self, first: int, count: int) -> dict[str, NDArray[np.int64]]:
        draws = _mixed(np.arange(first, first + count, dtype=np.uint64)).astype(np.int64)
        return {
            "half": draws % 2,
            "percent": draws // 2 % 100,
            "myriad": draws // 200 % 10_000,
            "part": self._parts[first : first + count].astype(np.int64),
        }

    def truth(self, where: Where | None, k: int) -> NDArray[np.int64]:
        """The k nearest items of each query among those let through `(queries, k)`, by flat search.

        Where fewer than k are let through, -1 stands for the rest. Kept in the folder.
        """
        name = "all" if where is None else f"{where[0]}-{where[1]}"
        path = self.folder / f"truth-{name}-{k}.npy"
        if not path.exists():
            np.save(path, self._nearest(self.matching(where), k))
        return np.load(path)

    def _nearest(self, chosen: NDArray[np.bool_], k: int) -> NDArray[np.int64]:
        import faiss

        results = faiss.ResultHeap(len(self.queries), k, keep_max=True)
        for start in range(0, self.items, CHUNK):
            mask = chosen[start : start + CHUNK]
            if not mask.any():
                continue
            numbers = np.flatnonzero(mask) + start
            scores, places = faiss.knn(
                self.queries,
                np.ascontiguousarray(self.vectors(start, CHUNK)[mask]),
                min(k, len(numbers)),
                metric=faiss.METRIC_INNER_PRODUCT,
            )
            results.add_result(D=scores, I=numbers[places])
        results.finalize()
        return results.I


def make(folder: Path, kind: Kind, *, items: int, queries: int, seconds: float = 600.0) -> Corpus:
    """Fill a folder with a corpus, unless it holds one like it.

    `real` has as many items as can be embedded in `seconds`, `items` at most; `queries` are then at
    most one batch of texts.
    """
    wanted = {"kind": kind, "wanted": items, "queries": queries}
    about = folder / "about.json"
    if about.exists() and wanted.items() <= json.loads(about.read_text()).items():
        return Corpus(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "real":
        count = _make_real(folder, items, queries, seconds)
    else:
        _make_drawn(folder, kind, items, queries)
        count = items
    about.write_text(json.dumps({**wanted, "items": count}))
    return Corpus(folder)


def _make_drawn(folder: Path, kind: Kind, items: int, queries: int) -> None:
    draw = np.random.default_rng(5)
    clusters = max(16, items // CLUSTER_ITEMS) if kind == "clustered" else 0
    centres = _units(draw.standard_normal((clusters, DIMENSIONS), np.float32))
    # Sizes that differ as those of topics do: the largest a few hundred times the smallest.
    weights = np.arange(1, clusters + 1) ** -0.7
    weights /= weights.sum()

    def some(count: int) -> tuple[Matrix, NDArray[np.int32]]:
        noise = _units(draw.standard_normal((count, DIMENSIONS), np.float32))
        if not clusters:
            return noise, draw.integers(0, 100, count, np.int32)
        own = draw.choice(clusters, count, p=weights).astype(np.int32)
        return _units(centres[own] + _SPREAD * noise), own

    some(queries)[0].tofile(folder / "queries.f32")
    with (folder / "vectors.f32").open("wb") as vectors, (folder / "parts.i32").open("wb") as parts:
        for start in range(0, items, CHUNK):
            rows, own = some(min(CHUNK, items - start))
            rows.tofile(vectors)
            own.tofile(parts)


def _make_real(folder: Path, items: int, queries: int, seconds: float) -> int:
    """Embed texts for so long; how many became items. The first are the queries."""
    from llmos.drivers.contract import ModelSpec
    from llmos.drivers.embedding import TorchEmbedding
    from llmos.memory.model_store import ModelStore

    model = TorchEmbedding(ModelSpec("minilm", ModelStore().path("minilm")))
    kept: list[str] = []
    ends = time.monotonic() + seconds
    with (folder / "vectors.f32").open("wb") as vectors:
        for place, texts in enumerate(_batched(_paragraphs(), _REAL_BATCH, queries + items)):
            rows = np.asarray(model.embed(texts), np.float32)
            begin = 0 if place else queries
            if place == 0:
                rows[:queries].tofile(folder / "queries.f32")
            rows[begin:].tofile(vectors)
            kept += texts[begin:]
            if time.monotonic() > ends:
                break
    model.close()
    (folder / "texts.json").write_text(json.dumps(kept))
    np.zeros(len(kept), np.int32).tofile(folder / "parts.i32")
    return len(kept)


def _paragraphs() -> Iterator[str]:
    """Paragraphs of docstrings, each once, from the installed packages' files in a mixed order."""
    files = sorted(Path(sysconfig.get_path("purelib")).rglob("*.py"))
    random.Random(5).shuffle(files)
    seen: set[str] = set()
    for file in files:
        for found in _PARAGRAPH.finditer(file.read_text(errors="replace")):
            for part in found[1].split("\n\n"):
                text = " ".join(part.split())
                if len(text) in _PARAGRAPH_CHARACTERS and text not in seen:
                    seen.add(text)
                    yield text


def _batched(texts: Iterator[str], size: int, most: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for _, text in zip(range(most), texts, strict=False):
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _units(rows: Matrix) -> Matrix:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A number's pseudo-random draw below 2**62. Source: Steele et al. 2014, SplitMix64."""
    with np.errstate(over="ignore"):
        state = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (state ^ (state >> np.uint64(31))) >> np.uint64(2)


def recall(found: Sequence[Sequence[int]], truth: NDArray[np.int64]) -> float:
    """The share of the true nearest that was found, over all queries."""
    hits = wanted = 0
    for numbers, row in zip(found, truth, strict=False):
        nearest = set(row[row >= 0].tolist())
        hits += len(nearest & set(numbers))
        wanted += len(nearest)
    return hits / wanted if wanted else 1.0
