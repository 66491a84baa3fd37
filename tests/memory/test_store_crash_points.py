"""kill -9 between any two lines of the store's code: what was acknowledged holds, nothing is torn.

Where `test_store_crash.py` kills at random times, which mostly hit SQLite and the disk, this kills
at chosen lines: in the middle of opening, migrating, committing, catching up, saving and building
an index, and vacuuming. This file is also the program that is killed: it loads everything once and
forks a life for each line of its standard input, `FOLDER LINES`, which dies after that many lines.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import faiss  # noqa: F401 - loaded before the forks, so that they start at once
import numpy as np
import pytest

from llmos.memory import nearest
from llmos.memory.query import Query
from llmos.memory.store import Store
from llmos.syscalls.calls import Note

KILLS = 40
DIMENSIONS = 8
MODULES = {
    "changes.py",
    "commits.py",
    "database.py",
    "folder.py",
    "nearest.py",
    "notes.py",
    "schema.py",
    "store.py",
    "upkeep.py",
    "vectors_build.py",
    "vectors_file.py",
    "writing.py",
}


@pytest.fixture(autouse=True)
def small_indexes_have_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "MOST_FLAT", 30)


def notes_of(batch: int) -> list[Note]:
    return [Note(text=f"{batch}.{part} lorem ipsum", source=str(batch)) for part in range(10)]


def vectors_of(batch: int) -> list[list[float]]:
    return np.random.default_rng(batch).standard_normal((10, DIMENSIONS)).tolist()


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def live(folder: Path) -> None:
    """Open, remember, forget, build, flush, vacuum and close, saying what was acknowledged."""
    store = Store(folder, dimensions=DIMENSIONS)
    store._nearest._next_try = 1 << 40  # no build in the background, where no line is counted
    for batch in range(5):
        store.remember("a", notes_of(batch), vectors_of(batch))
        say(f"remembered {batch}")
    store.flush()
    store.forget("a", source="1")
    say("forgotten 1")
    store.build()
    store.forget("a", source="3")
    say("forgotten 3")
    store.remember("a", notes_of(5), vectors_of(5))
    say("remembered 5")
    store.flush()
    store.vacuum()
    store.close()


def live_for(folder: Path, lines: int) -> None:
    """A life that a kill ends once so many lines of the modules have run, unless it ends before."""
    left = lines

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        path = Path(frame.f_code.co_filename)
        if path.name not in MODULES or path.parent.name != "memory":
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return count

    sys.settrace(count)
    live(folder)
    sys.settrace(None)
    say(f"lived {lines - left}")


def main() -> None:
    for line in sys.stdin:
        folder, _, lines = line.strip().rpartition(" ")
        life = os.fork()
        if life == 0:
            live_for(Path(folder), int(lines))
            os._exit(0)
        os.waitpid(life, 0)
        say("dead")


class Lives:
    """The forking program."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, folder: Path, lines: int) -> list[str]:
        """One life in a folder; what it said before its end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{folder} {lines}\n")
        self._process.stdin.flush()
        said: list[str] = []
        while (line := self._process.stdout.readline().strip()) != "dead":
            assert line, "the program ended by itself"
            said.append(line)
        return said

    def close(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


@pytest.fixture
def lives() -> Iterator[Lives]:
    started = Lives()
    yield started
    started.close()


def check(folder: Path, said: list[str]) -> None:
    """What was acknowledged is so; the one call after it was done whole or not at all."""
    remembered = {int(line.split()[1]) for line in said if line.startswith("remembered")}
    forgotten = {int(line.split()[1]) for line in said if line.startswith("forgotten")}
    store = Store(folder, dimensions=DIMENSIONS)
    report = store.check()
    assert report.problems == ()
    with store.reading() as reader:
        there = [text for (text,) in reader.sql.execute("SELECT text FROM notes")]
    unsure = 0
    for batch in range(6):
        expected = {note.text for note in notes_of(batch)}
        found = expected.intersection(there)
        assert len(found) in (0, 10), f"batch {batch} is torn"
        if batch in forgotten:
            assert not found, f"batch {batch} came back"
        elif batch in remembered and not (found or batch in (1, 3)):
            raise AssertionError(f"batch {batch} was lost")
        unsure += bool(found) != (batch in remembered and batch not in forgotten)
    assert unsure <= 1
    for vector in vectors_of(5)[:2]:
        query = Query(text="", vector=vector, k=100, mode="dense", namespaces=["a"])
        assert len(store.retrieve(query).hits) == len(there)
    store.close()


def test_no_line_is_a_wrong_one_to_be_killed_at(lives: Lives, tmp_path: Path) -> None:
    (lived,) = [line for line in lives.run(tmp_path / "whole", 1 << 40) if line.startswith("lived")]
    total = int(lived.split()[1])
    assert total > 1000
    choose = random.Random(3)
    # One in each stretch, so that no phase is left out.
    for kill in range(KILLS):
        line = choose.randrange(kill * total // KILLS, (kill + 1) * total // KILLS) + 1
        folder = tmp_path / f"life{kill}"
        said = lives.run(folder, line)
        assert not said or not said[-1].startswith("lived")
        check(folder, said)
        shutil.rmtree(folder)


def test_a_life_after_many_kills_ends_well(lives: Lives, tmp_path: Path) -> None:
    """Kills one after the other in one folder, as a machine that keeps crashing."""
    choose = random.Random(8)
    for _ in range(KILLS // 3):
        lives.run(tmp_path, choose.randrange(1, 4000))
    assert lives.run(tmp_path, 1 << 40)[-1].startswith("lived")
    store = Store(tmp_path, dimensions=DIMENSIONS)
    assert store.check().problems == ()
    assert store.stat().items == 40
    store.close()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"notes.db", "vectors.faiss", "lock", "index.lock"}
    with closing(sqlite3.connect(tmp_path / "notes.db")) as sql:
        assert sql.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


if __name__ == "__main__":
    nearest.MOST_FLAT = 30
    main()
