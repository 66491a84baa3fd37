"""A lock that is shared by readers: they do not keep each other waiting, and a writer is alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from llmos.memory.shared_lock import SharedLock


def test_sharers_are_inside_together() -> None:
    lock, together = SharedLock(), threading.Barrier(3, timeout=10)

    def share() -> None:
        with lock.shared():
            together.wait()  # passes only when all three are inside

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(share) for _ in range(3)]:
            done.result()


def test_whoever_has_it_alone_is_alone() -> None:
    lock = SharedLock()
    state = {"value": 0}

    def change() -> None:
        for _ in range(200):
            with lock.alone():
                before = state["value"]
                state["value"] = -1
                state["value"] = before + 1

    def look() -> int:
        worst = 0
        for _ in range(200):
            with lock.shared():
                worst = min(worst, state["value"])
        return worst

    with ThreadPoolExecutor(6) as pool:
        changes = [pool.submit(change) for _ in range(3)]
        looks = [pool.submit(look) for _ in range(3)]
        for done in changes:
            done.result()
        assert all(done.result() == 0 for done in looks)
    assert state["value"] == 600


def test_a_block_that_raises_lets_the_next_one_in() -> None:
    lock = SharedLock()
    for block in (lock.shared, lock.alone):
        try:
            with block():
                raise KeyError
        except KeyError:
            pass
    with lock.alone():
        pass
