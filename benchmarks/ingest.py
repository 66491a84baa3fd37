"""Ten thousand real files into the store, and again after one in a hundred has changed.

The files are those of this Python installation and of /usr/share/doc (Python, Markdown, HTML, text,
CSV) up to 128 KiB, which 98% of them are; drawn by the hash of their paths and copied with their
times: real sizes, encodings, empty files and all. Two sides:

- Parsing, cutting, manifest and store, with the real tokenizer and vectors that are only a hash of
  the text, of eight numbers. This is what a second run has to be measured against: with real
  embeddings the first run takes an hour and every second run looks fast.
- The whole with the real embedding model through the kernel, over the first files of the same tree.

A change is a line added at the end of a file. Memory is what the process holds by itself (RssAnon),
without the vector index, which holds what is stored: at the end against a fifth of the way.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import llmos
from benchmarks.form import Floor, main_with
from llmos.booting import settings_of
from llmos.config import load_config
from llmos.memory.ingest.counting import WordCounter
from llmos.memory.ingest.ingest import Ingestion, Progress
from llmos.memory.ingest.intake import Embedded
from llmos.memory.store import Store
from llmos.syscalls.results import Ingested

DIMENSIONS = 8  # few, so that the index is next to nothing beside the notes
SUFFIXES = frozenset({".py", ".md", ".html", ".htm", ".txt", ".rst", ".csv", ""})
MOST_BYTES = 128 * 1024
CHANGED_EVERY = 100
NAMESPACE = "tree"


class Run(NamedTuple):
    """One run over the tree, and what it held in memory as it went on, in bytes by file."""

    done: Ingested
    seconds: float
    held: dict[int, int]


def tree(folder: Path, count: int) -> list[Path]:
    """Copy `count` files into a folder, a thousand a subfolder."""
    roots = [Path(sysconfig.get_paths()["purelib"]), Path("/usr/share/doc")]
    found = [path for root in roots for path in _files(root)]
    found.sort(key=lambda path: hashlib.sha256(str(path).encode()).digest())
    copies: list[Path] = []
    for number, path in enumerate(found[:count]):
        copy = folder / f"{number // 1000:02}" / f"{number:05}-{path.name}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
        copies.append(copy)
    return copies


def _files(root: Path) -> Iterator[Path]:
    for path in root.rglob("*"):
        is_text = path.suffix.lower() in SUFFIXES and "__pycache__" not in path.parts
        is_file = is_text and not path.is_symlink() and path.is_file()
        if is_file and path.stat().st_size <= MOST_BYTES:
            yield path


def change(files: Sequence[Path]) -> None:
    """Add a line to one file in a hundred."""
    for path in files[::CHANGED_EVERY]:
        with path.open("ab") as file:
            file.write(b"\n# One more line.\n")


def hashed(texts: Sequence[str]) -> Embedded:
    """Vectors that cost next to nothing, the same for the same text."""
    vectors: list[list[float]] = []
    for text in texts:
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
        vectors.append(np.random.default_rng(seed).standard_normal(DIMENSIONS).tolist())
    return Embedded(vectors)


def held_bytes(store: Store) -> int:
    """Memory that is the process's own, but for the vector index."""
    status = Path("/proc/self/status").read_text()
    (line,) = (one for one in status.splitlines() if one.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024 - store.index_bytes()


def ingest(store: Store, folder: Path, counter: WordCounter, every: int) -> Run:
    held: dict[int, int] = {}

    def look(progress: Progress) -> None:
        if progress.files % every == 0:
            held[progress.files] = held_bytes(store)

    run = Ingestion(store, NAMESPACE, embed=hashed, count=counter, on_progress=look)
    gc.collect()
    started = time.perf_counter()
    done = run.run([folder])
    return Run(done, time.perf_counter() - started, held)


def structure(
    files: Sequence[Path], folder: Path, home: Path, counter: WordCounter
) -> dict[str, Any]:
    """The side without a model."""
    every = max(1, len(files) // 20)
    store = Store(home / "store", dimensions=DIMENSIONS)
    first = ingest(store, folder, counter, every)
    idle = ingest(store, folder, counter, every)
    change(files)
    second = ingest(store, folder, counter, every)
    store.close()
    later = {seen: held for seen, held in first.held.items() if seen >= len(files) // 5}
    at_a_fifth = later[min(later)]
    megabytes = first.done.bytes / 1e6
    return {
        "files": len(files),
        "megabytes": round(megabytes, 1),
        "notes": first.done.notes,
        "refused": first.done.refused,
        "first_s": round(first.seconds, 1),
        "files_per_s": round(len(files) / first.seconds),
        "megabytes_per_s": round(megabytes / first.seconds, 2),
        "changed": second.done.changed,
        "second_s": round(second.seconds, 2),
        "speedup": round(first.seconds / second.seconds, 1),
        "nothing_changed_s": round(idle.seconds, 2),
        "memory_growth_mb": round((max(later.values()) - at_a_fifth) / 1e6, 1),
        "memory_mb": round(max(first.held.values()) / 1e6),
    }


async def with_model(files: Sequence[Path], home: Path, most_bytes: int) -> dict[str, Any]:
    """The side with the real model, over so much of the tree."""
    chosen: list[str] = []
    total = 0
    for path in files:
        total += path.stat().st_size
        if chosen and total > most_bytes:
            break
        chosen.append(str(path))
    async with llmos.boot(home=home) as kernel:
        await kernel.os.embed(["Open the model."])
        started = time.perf_counter()
        first = await kernel.os.ingest(chosen, namespace=NAMESPACE)
        first_s = time.perf_counter() - started
        change([Path(chosen[0])])
        started = time.perf_counter()
        await kernel.os.ingest(chosen, namespace=NAMESPACE)
        second_s = time.perf_counter() - started
    return {
        "real_files": len(chosen),
        "real_notes": first.notes,
        "real_megabytes": round(first.bytes / 1e6, 2),
        "real_first_s": round(first_s, 1),
        "real_notes_per_s": round(first.notes / first_s, 1),
        "real_second_s": round(second_s, 2),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    count = 1_000 if options.quick else options.files
    embedding = settings_of(load_config()).embedding
    assert embedding is not None
    model = embedding.open()
    counter = WordCounter(model.count)
    with tempfile.TemporaryDirectory() as scratch:
        files = tree(Path(scratch) / "tree", count)
        figures = structure(files, Path(scratch) / "tree", Path(scratch), counter)
        model.close()
        if options.real_kb:
            real = with_model(files, Path(scratch) / "home", options.real_kb * 1000)
            figures |= asyncio.run(real)
    return figures


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000, help="files of the tree")
    parser.add_argument("--quick", action="store_true", help="1,000 files")
    parser.add_argument("--real-kb", type=int, default=300, help="text for the real model; 0: none")
    return parser


FLOORS = [Floor("speedup", ">=", 30), Floor("memory_growth_mb", "<=", 50)]


if __name__ == "__main__":
    main_with(arguments(), "ingest", measure, FLOORS)
