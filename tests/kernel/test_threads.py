"""Priorities of threads."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from llmos.kernel.threads import yield_to_others


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities of their own")
def test_a_thread_gives_way_with_those_that_it_starts_and_nobody_else() -> None:
    seen: dict[str, int] = {}

    def look(name: str) -> None:
        seen[name] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def work() -> None:
        yield_to_others(3)
        look("itself")
        started = threading.Thread(target=look, args=("started",))
        started.start()
        started.join()
        yield_to_others(100)
        look("bounded")

    look("before")
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    look("after")
    assert seen["after"] == seen["before"]
    assert seen["itself"] == seen["started"] == min(19, seen["before"] + 3)
    assert seen["bounded"] == 19
