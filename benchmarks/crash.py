"""A store killed with SIGKILL at random moments, hundreds of times, under write load.

Each round forks processes that open the store and write to it from several threads each: batches
of notes, and deletions of notes that were acknowledged. They report through a pipe what they are
about to do and what has returned. Each is killed after a random time of its own, which may fall
into the opening, a write or a save of the index, and while another goes on. The next process opens
what is left, and everything is looked for, by vector and by word:

- `lost`: acknowledged and not deleted, yet not found.
- `undead`: acknowledged as deleted, yet returned.
- `torn`: batches that were under way, of which some notes are there and some are not.
- `strange`: returned, though nobody wrote it.
- `unlike`: found by one of the two ways only.

A note's vector follows from its name, so that the writer and the judge need not tell each other.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from benchmarks.form import Floor, main_with

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmos.memory.store import Store

KILLS = 300
QUICK_KILLS = 20
PROCESSES = 2
WRITERS = 3  # threads of each
DIMENSIONS = 32
MOST_ALIVE_S = 0.4  # a round's process is killed within this time, evenly drawn
_MOST_IN_BATCH = 20
_SAVE_EVERY = 7  # writes of one thread between saves of the index
_LOOK_BACK = 5  # earlier rounds that are judged again after each kill
_K = 1_000_000


@dataclass(slots=True)
class Known:
    """What is certain about one writer's namespace, and what was under way when it was killed."""

    live: set[str] = field(default_factory=set[str])
    gone: set[str] = field(default_factory=set[str])
    adding: set[str] = field(default_factory=set[str])
    deleting: set[str] = field(default_factory=set[str])

    def hear(self, verb: str, names: set[str]) -> None:
        """Take in one report of the writer."""
        match verb:
            case "add":
                self.adding = names
            case "added":
                self.live |= names
                self.adding = set()
            case "delete":
                self.deleting = names
            case "deleted":
                self.gone |= names
                self.live -= names
                self.deleting = set()
            case _:
                raise ValueError(f"a writer reported {verb!r}")

    def judge(self, found: set[str]) -> Counter[str]:
        """Count what is wrong with what a store returned; afterwards all of it is certain."""
        wrong = Counter(
            lost=len(self.live - self.deleting - found),
            undead=len(self.gone & found),
            torn=int(0 < len(self.adding & found) < len(self.adding)),
            strange=len(found - self.live - self.gone - self.adding),
        )
        # A deletion is one transaction as well.
        wrong["torn"] += int(0 < len(self.deleting & found) < len(self.deleting))
        self.gone |= (self.live | self.adding) - found
        self.live = found & (self.live | self.adding)
        self.adding, self.deleting = set(), set()
        return wrong


def vector_of(name: str) -> NDArray[np.float32]:
    """A note's vector, which follows from its name alone."""
    return np.random.default_rng(list(name.encode())).standard_normal(DIMENSIONS, np.float32)


def open_store(folder: Path) -> Store:
    from llmos.memory.store import Store

    return Store(folder, dimensions=DIMENSIONS)


class Writer:
    """Adds to and deletes from one namespace, and reports each step, until it is killed."""

    def __init__(self, store: Store, namespace: str, pipe: int) -> None:
        self._store = store
        self._namespace = namespace
        self._pipe = pipe
        self._draw = random.Random(namespace)
        self._ids: dict[str, int] = {}
        self._written = 0

    def run(self) -> None:
        with _ending(1):
            self._write()

    def _write(self) -> None:
        for turn in range(1, _K):
            if len(self._ids) > _MOST_IN_BATCH and self._draw.random() < 0.4:
                self._delete()
            else:
                self._add()
            if turn % _SAVE_EVERY == 0:
                self._store.flush()

    def _add(self) -> None:
        from llmos.syscalls.calls import Note

        count = self._draw.randint(1, _MOST_IN_BATCH)
        names = [f"{self._namespace}n{self._written + place}" for place in range(count)]
        self._written += count
        notes = [Note(text=f"{name} crash", metadata={"name": name}) for name in names]
        self._report("add", names)
        done = self._store.remember(self._namespace, notes, [vector_of(name) for name in names])
        self._report("added", names)
        self._ids |= dict(zip(names, done.ids, strict=True))

    def _delete(self) -> None:
        names = self._draw.sample(list(self._ids), self._draw.randint(1, _MOST_IN_BATCH))
        self._report("delete", names)
        self._store.forget(self._namespace, ids=[self._ids.pop(name) for name in names])
        self._report("deleted", names)

    def _report(self, verb: str, names: list[str]) -> None:
        # One write below the size that a pipe takes whole: reports are never mixed or cut.
        line = f"{self._namespace} {verb} {' '.join(names)}\n".encode()
        assert len(line) <= 4096
        os.write(self._pipe, line)


def killed_round(folder: Path, number: int, lives_s: Sequence[float]) -> dict[str, Known]:
    """Write from forked processes and kill each after its time; what is known then."""
    reading, writing = os.pipe()
    children: list[int] = []
    for place in range(len(lives_s)):
        child = os.fork()
        if child == 0:
            with _ending(1):
                _write_until_killed(folder, f"r{number}p{place}", writing)
        children.append(child)
    os.close(writing)
    killers = [
        threading.Timer(life_s, os.kill, (child, signal.SIGKILL))
        for child, life_s in zip(children, lives_s, strict=True)
    ]
    for killer in killers:
        killer.start()
    known: dict[str, Known] = {}
    # Read while they write, so that a full pipe does not stop them; it ends with the last of them.
    for line in _lines(reading):
        namespace, verb, *names = line.split()
        known.setdefault(namespace, Known()).hear(verb, set(names))
    for killer, child in zip(killers, children, strict=True):
        killer.join()
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise RuntimeError(f"round {number}: a writer ended by itself, status {status}")
    return known


def _write_until_killed(folder: Path, name: str, pipe: int) -> None:
    store = open_store(folder)
    threads = [
        threading.Thread(target=Writer(store, f"{name}w{place}", pipe).run)
        for place in range(WRITERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _lines(descriptor: int) -> Iterator[str]:
    with os.fdopen(descriptor) as file:
        yield from file


def _judged(
    folder: Path, known: dict[str, Known], namespaces: list[str], *, everywhere: bool
) -> Counter[str]:
    """Look for everything in some namespaces, and count what is wrong; perhaps in all at once."""
    wrong: Counter[str] = Counter()
    found, anywhere = _looked(folder, namespaces, list(known) if everywhere else [])
    for one in known.values():
        wrong["undead"] += len(one.gone & anywhere)
    for namespace, modes in found.items():
        dense, lexical = set(modes["dense"]), set(modes["lexical"])
        wrong["unlike"] += len(dense ^ lexical)
        wrong += known[namespace].judge(dense | lexical)
    return wrong


def _looked(
    folder: Path, namespaces: list[str], everything: list[str]
) -> tuple[dict[str, dict[str, list[str]]], set[str]]:
    """What some namespaces return, each by vector and by word, and all by vector: names of notes.

    To a process of its own, because this one forks, which it could not once a library has started
    threads. A search of everything is the index's alone, which need not find all but no other.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with _ending(0), os.fdopen(writing, "w") as pipe:
            store = open_store(folder)
            found = {
                namespace: {mode: _names(store, [namespace], mode) for mode in ("dense", "lexical")}
                for namespace in namespaces
            }
            everywhere = _names(store, everything, "dense") if everything else []
            store.close()
            json.dump([found, everywhere], pipe)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"the store could not be opened and read after a kill: status {status}")
    found, everywhere = json.loads(said)
    return found, set(everywhere)


def _names(store: Store, namespaces: list[str], mode: Any) -> list[str]:
    from llmos.memory.query import Query

    query = Query(
        text="crash",
        vector=vector_of("query").tolist(),
        k=_K,
        mode=mode,
        namespaces=namespaces,
    )
    return [str(hit.metadata["name"]) for hit in store.retrieve(query).hits]


@contextmanager
def _ending(status: int) -> Generator[None]:
    """End a forked process with its block, never to come back into the parent's code."""
    try:
        yield
    except BaseException:  # noqa: BLE001 - told, and then the end
        traceback.print_exc()
        status = 1
    finally:
        sys.stderr.flush()
        os._exit(status)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    # Before the forks, which then have them.
    import faiss  # noqa: F401

    import llmos.memory.store  # noqa: F401
    from llmos.memory import nearest

    # So that indexes with lists are built all the time, and killed while they are.
    with mock.patch.multiple(nearest, MOST_FLAT=400, GROWN=1.1):
        return _measured(options)


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    kills = options.kills or (QUICK_KILLS if options.quick else KILLS)
    draw = random.Random(options.seed)
    known: dict[str, Known] = {}
    wrong: Counter[str] = Counter(lost=0, undead=0, torn=0, strange=0, unlike=0)
    wrote = 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "store"
        _looked(folder, [], [])  # makes the store
        for number in range(kills // PROCESSES):
            lives_s = [draw.uniform(0, MOST_ALIVE_S) for _ in range(PROCESSES)]
            fresh = killed_round(folder, number, lives_s)
            wrote += len({name.partition("w")[0] for name in fresh})
            earlier = draw.sample(sorted(known), min(len(known), _LOOK_BACK))
            known |= fresh
            is_tenth = number % 10 == 9
            wrong += _judged(folder, known, [*fresh, *earlier], everywhere=is_tenth)
        wrong += _judged(folder, known, list(known), everywhere=True)
    return {
        "kills": kills,
        "kills_before_a_write": kills - wrote,
        **{key: wrong[key] for key in ("lost", "undead", "torn", "strange", "unlike")},
        "acknowledged": sum(len(one.live) + len(one.gone) for one in known.values()),
        "acknowledged_deleted": sum(len(one.gone) for one in known.values()),
        "live_at_the_end": sum(len(one.live) for one in known.values()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    made.add_argument("--quick", action="store_true", help=f"{QUICK_KILLS} kills")
    made.add_argument("--kills", type=int, help=f"default {KILLS}")
    made.add_argument("--seed", type=int, default=0)
    return made


FLOORS = tuple(Floor(name, "==", 0) for name in ("lost", "undead", "torn", "strange", "unlike"))

if __name__ == "__main__":
    main_with(parser(), "crash", measure, FLOORS)
