from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest

from llmos.kernel.worker import Worker
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonObject

HEADER = """
import json, os, signal, sys
def tell(**fields):
    print(json.dumps(fields), flush=True)
"""


class Child:
    """A worker that runs a script of the test, and what it said."""

    def __init__(self, folder: Path, script: str, *, grace_s: float = 60.0) -> None:
        (folder / "job.py").write_text(HEADER + script, encoding="utf-8")
        self.events: list[JsonObject] = []
        self.spoke = asyncio.Event()
        self.is_deaf = False  # refuse to hear events
        self.command = (sys.executable, str(folder / "job.py"))
        self.worker = Worker(self.command, log=folder / "worker.log", grace_s=grace_s)
        self.task = asyncio.ensure_future(self.worker.run(self._hear))

    def _hear(self, event: JsonObject) -> None:
        self.events.append(event)
        self.spoke.set()
        if self.is_deaf:
            raise ValueError("refused")

    async def first_event(self) -> JsonObject:
        await self.spoke.wait()
        return self.events[0]

    async def cancelled(self) -> None:
        with pytest.raises(asyncio.CancelledError):
            await self.task


def test_events_arrive_in_order_and_chatter_goes_to_the_log(tmp_path: Path) -> None:
    async def run() -> list[JsonObject]:
        child = Child(tmp_path, "print('chatter', file=sys.stderr)\nfor n in range(3): tell(n=n)")
        await child.task
        return child.events

    assert asyncio.run(run()) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert (tmp_path / "worker.log").read_text() == "chatter\n"


def test_a_death_is_told_with_the_end_of_the_log(tmp_path: Path) -> None:
    async def run() -> None:
        await Child(
            tmp_path, "print('10%\\r50%\\rloading', file=sys.stderr)\nraise KeyError(7)"
        ).task

    with pytest.raises(SyscallError) as died:
        asyncio.run(run())
    assert died.value.code == "failed"
    assert "ended with status 1" in died.value.message
    assert died.value.message.endswith("KeyError: 7")
    assert "loading" in died.value.message
    assert "50%" not in died.value.message


def test_a_death_by_a_signal_names_it(tmp_path: Path) -> None:
    async def run() -> None:
        await Child(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)").task

    with pytest.raises(SyscallError, match=r"ended with SIGKILL .*memory") as died:
        asyncio.run(run())
    assert died.value.fields["status"] == -9


def test_cancelling_asks_the_worker_to_end_and_hears_its_last_words(tmp_path: Path) -> None:
    script = """
def end(number, frame):
    tell(said="goodbye")
    sys.exit()
signal.signal(signal.SIGTERM, end)
tell(pid=os.getpid())
while True: signal.pause()
"""

    async def run() -> list[JsonObject]:
        child = Child(tmp_path, script)
        await child.first_event()
        child.task.cancel()
        await child.cancelled()
        return child.events

    first, last = asyncio.run(run())
    assert last == {"said": "goodbye"}
    assert not psutil.pid_exists(first["pid"])


DEAF = """
signal.signal(signal.SIGTERM, lambda number, frame: tell(heard=number))
tell(pid=os.getpid())
while True: signal.pause()
"""


def test_a_worker_that_does_not_end_in_time_is_killed(tmp_path: Path) -> None:
    async def run() -> int:
        child = Child(tmp_path, DEAF, grace_s=0.0)
        pid = (await child.first_event())["pid"]
        child.task.cancel()
        await child.cancelled()
        return pid

    assert not psutil.pid_exists(asyncio.run(run()))


def test_a_second_cancellation_kills_at_once(tmp_path: Path) -> None:
    async def run() -> int:
        child = Child(tmp_path, DEAF)
        pid = (await child.first_event())["pid"]
        child.spoke.clear()
        child.task.cancel()
        await child.spoke.wait()
        assert "heard" in child.events[-1]
        child.task.cancel()
        await child.cancelled()
        return pid

    assert not psutil.pid_exists(asyncio.run(run()))


def test_an_error_of_the_listener_ends_the_worker(tmp_path: Path) -> None:
    async def run() -> None:
        child = Child(tmp_path, "tell(pid=os.getpid())\nwhile True: signal.pause()")
        child.is_deaf = True
        with pytest.raises(ValueError, match="refused"):
            await child.task
        assert not psutil.pid_exists(child.events[0]["pid"])

    asyncio.run(run())


async def stopped() -> None:
    """Until a child of this process is stopped."""
    await asyncio.to_thread(os.waitid, os.P_ALL, 0, os.WSTOPPED)


def test_a_held_worker_stands_still_goes_on_and_can_be_ended(tmp_path: Path) -> None:
    async def run() -> None:
        child = Child(tmp_path, "tell(pid=os.getpid())\nwhile True: signal.pause()")
        pid = (await child.first_event())["pid"]
        process = psutil.Process(pid)
        child.worker.hold(True)
        await stopped()
        assert process.status() == psutil.STATUS_STOPPED
        child.worker.hold(False)
        assert process.status() != psutil.STATUS_STOPPED
        child.worker.hold(True)
        child.task.cancel()
        await child.cancelled()
        assert not psutil.pid_exists(pid)

    asyncio.run(run())


def test_a_worker_held_before_its_start_starts_held(tmp_path: Path) -> None:
    async def run() -> None:
        child = Child(tmp_path, "tell(is_running=True)")
        child.worker.hold(True)
        await asyncio.sleep(0)  # the worker begins
        await stopped()
        assert child.events == []
        child.task.cancel()
        await child.cancelled()

    asyncio.run(run())


def test_a_log_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    async def run() -> None:
        worker = Worker(("true",), log=tmp_path / "none" / "log", grace_s=0.0)
        await worker.run(lambda _: None)

    with pytest.raises(SyscallError) as failed:
        asyncio.run(run())
    assert failed.value.code == "storage"
