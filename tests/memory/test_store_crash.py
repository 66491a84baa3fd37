"""kill -9 of a process that writes to the store: nothing acknowledged is lost or comes back.

This file is also the program that is killed. It loads everything heavy once, then forks a fresh
writer for each line of its standard input, so that a kill costs milliseconds. A writer prints what
it is about to do and, once the store has acknowledged it, that it is done:

    begin N        a batch of texts "N.0", "N.1", ... will be remembered
    done N         it was acknowledged
    begin-forget N / done-forget N    the same for forgetting source "N"
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import faiss  # noqa: F401 - loaded before the forks, so that they start at once
import pytest

from llmos.memory import notes as rows
from llmos.memory.query import Query
from llmos.memory.store import Store
from llmos.syscalls.calls import Note

KILLS = 40
BATCHES_A_WRITER = 1000  # numbers set aside for each
DIMENSIONS = 16


def texts_of(batch: int) -> list[str]:
    """The texts of a batch; its size follows from its number."""
    return [f"{batch}.{part} " + "lorem ipsum " * (batch % 40) for part in range(1 + batch % 7)]


def vector_of(text: str) -> list[float]:
    """A vector that only this text has."""
    source = random.Random(text)
    return [source.uniform(-1, 1) for _ in range(DIMENSIONS)]


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def write(folder: Path, first_batch: int) -> None:
    """Remember, forget and flush until killed."""
    store, choose, kept = Store(folder, dimensions=DIMENSIONS), random.Random(first_batch), []
    say("open")
    for batch in range(first_batch, first_batch + 100_000):
        say(f"begin {batch}")
        notes = [Note(text=text, source=str(batch)) for text in texts_of(batch)]
        store.remember("a", notes, [vector_of(note.text) for note in notes])
        say(f"done {batch}")
        kept.append(batch)
        if choose.random() < 0.3:
            gone = kept.pop(choose.randrange(len(kept)))
            say(f"begin-forget {gone}")
            store.forget("a", source=str(gone))
            say(f"done-forget {gone}")
        if choose.random() < 0.1:
            store.flush()


def main() -> None:
    folder = Path(sys.argv[1])
    for line in sys.stdin:
        writer = os.fork()
        if writer == 0:
            write(folder, int(line))
        say(f"pid {writer}")
        os.waitpid(writer, 0)
        say("dead")


class Writer:
    """The forking writer, and what its writers have said so far."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.remembered: set[int] = set()
        self.forgotten: set[int] = set()
        self.unsure: set[int] = set()  # begun and not acknowledged: either is right

    def run(self, first_batch: int, events: int, delay_s: float) -> None:
        """Start a writer; kill it `delay_s` after it has said `events` lines."""
        self._say(first_batch)
        pid, lines = None, 0
        while (line := self._hear()) != "dead":
            word, _, number = line.partition(" ")
            if word == "pid":
                pid = int(number)
            else:
                self._note(word, number)
                lines += 1
            if pid is not None and lines == events:
                threading.Timer(delay_s, os.kill, (pid, signal.SIGKILL)).start()
                pid = None

    def close(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _note(self, word: str, number: str) -> None:
        match word:
            case "begin":
                self.unsure.add(int(number))
            case "done":
                self.unsure.discard(int(number))
                self.remembered.add(int(number))
            case "begin-forget":
                self.remembered.discard(int(number))
                self.unsure.add(int(number))
            case "done-forget":
                self.unsure.discard(int(number))
                self.forgotten.add(int(number))
            case _:
                assert word == "open", word

    def _say(self, number: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the writer ended by itself"
        return line.strip()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    started = Writer(tmp_path)
    yield started
    started.close()


def test_no_kill_loses_what_was_acknowledged_or_brings_back_what_was_deleted(
    writer: Writer, tmp_path: Path
) -> None:
    choose = random.Random(11)
    for kill in range(KILLS):
        writer.run(kill * BATCHES_A_WRITER, choose.randrange(25), choose.uniform(0, 0.02))
        check(writer, tmp_path)
    assert writer.unsure, "no kill hit a call in progress"
    assert len(writer.remembered) > KILLS and len(writer.forgotten) > KILLS // 4


def check(writer: Writer, folder: Path) -> None:
    """Every acknowledged batch is whole, no forgotten one is there, no other one is torn."""
    store = Store(folder, dimensions=DIMENSIONS)
    stored = dict(store._database.connection.execute("SELECT id, text FROM notes"))
    texts = set(stored.values())
    assert len(texts) == len(stored)
    for batch in writer.remembered:
        assert texts.issuperset(texts_of(batch)), f"batch {batch} was lost"
    for batch in writer.forgotten:
        assert texts.isdisjoint(texts_of(batch)), f"batch {batch} came back"
    for batch in writer.unsure:
        present = texts.intersection(texts_of(batch))
        assert len(present) in (0, len(texts_of(batch))), f"batch {batch} is torn"
    assert (
        store._nearest.index.ids.tolist()
        == sorted(stored)
        == rows.all_ids(store._database.connection).tolist()
    )
    for note in random.Random(len(stored)).sample(sorted(stored), min(5, len(stored))):
        vector = vector_of(stored[note])
        for mode, k in (("dense", 1), ("lexical", len(stored))):
            found = store.retrieve(
                Query(text=stored[note], vector=vector, k=k, mode=mode, namespaces=["a"])
            )
            assert note in {hit.id for hit in found.hits}
    assert store.check().problems == ()
    store.close()


if __name__ == "__main__":
    main()
