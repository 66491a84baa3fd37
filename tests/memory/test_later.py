"""Work in the background: done once for all who ask, and not after the end."""

from __future__ import annotations

from threading import Event

from llmos.memory.later import Later


def test_who_asks_meanwhile_is_served_by_one_more_run() -> None:
    runs: list[int] = []
    began, may_end = Event(), Event()

    def work() -> None:
        runs.append(len(runs))
        began.set()
        may_end.wait()

    later = Later("test", work)
    later.ask()
    began.wait()
    for _ in range(5):
        later.ask()
    may_end.set()
    later.wait()
    assert runs == [0, 1]
    later.ask()
    later.wait()
    assert runs == [0, 1, 2]


def test_nothing_is_done_after_the_end() -> None:
    runs: list[None] = []
    later = Later("test", lambda: runs.append(None))
    later.ask()
    later.stop()
    done = len(runs)
    later.ask()
    later.stop()
    assert len(runs) == done <= 1
