"""What remote models have cost: one sum over kernels and starts, and never a guess at it."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from llmos.memory.spending import SPENDING_FILE, Spending, Spent
from llmos.syscalls.errors import SyscallError

_KILLED = """
import os, signal, sys
from pathlib import Path
from llmos.memory.spending import Spending, Spent

Spending(Path(sys.argv[1])).add("far", Spent(7, 0.5))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_is_written_before_something_was_spent(tmp_path: Path) -> None:
    assert Spending(tmp_path).of("far") == Spent(0, 0.0)
    assert list(tmp_path.iterdir()) == []


def test_additions_are_summed_by_model(tmp_path: Path) -> None:
    with closing(Spending(tmp_path / "home")) as spending:
        assert spending.add("far", Spent(10, 0.5)) == (10, 0.5)
        assert spending.add("far", Spent(5, 0.25)) == (15, 0.75)
        spending.add("other", Spent(1, 1.0))
    with closing(Spending(tmp_path / "home")) as spending:
        assert spending.of("far") == (15, 0.75)
        assert spending.of("unknown") == Spent()
    assert [path.name for path in (tmp_path / "home").iterdir()] == [SPENDING_FILE]


def test_an_addition_outlives_a_kernel_that_is_killed_right_after_it(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    with closing(Spending(tmp_path)) as spending:
        assert spending.of("far") == (7, 0.5)


def test_kernels_that_begin_at_once_lose_no_addition(tmp_path: Path) -> None:
    def one(number: int) -> None:
        with closing(Spending(tmp_path)) as spending:
            for _ in range(5):
                spending.add("far", Spent(1, 0.5))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one, range(4)))
    with closing(Spending(tmp_path)) as spending:
        assert spending.of("far") == (20, 10.0)


@pytest.mark.parametrize("damage", [b"", b"rubbish" * 1000])
def test_a_damaged_file_is_an_error_and_no_empty_one(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / SPENDING_FILE).write_bytes(damage)
    with closing(Spending(tmp_path)) as spending:
        for _ in range(2):
            with pytest.raises(SyscallError, match="bring back a copy"):
                spending.of("far")
            with pytest.raises(SyscallError, match="bring back a copy"):
                spending.add("far", Spent(1, 1.0))
    assert (tmp_path / SPENDING_FILE).read_bytes()[: len(damage)] == damage


def test_a_file_that_was_cut_short_is_an_error(tmp_path: Path) -> None:
    with closing(Spending(tmp_path)) as spending:
        spending.add("far", Spent(1, 1.0))
    path = tmp_path / SPENDING_FILE
    path.write_bytes(path.read_bytes()[:5000])
    with closing(Spending(tmp_path)) as spending, pytest.raises(SyscallError, match="storage"):
        spending.of("far")
