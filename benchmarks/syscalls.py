"""What a syscall and a process cost when no device is involved.

Latency is measured inside a program, with 1,000 other processes alive: `Nice`, the shortest way
through gate and dispatcher, and a message to an echo process and back (four syscalls, two switches
of task). Each is set beside the same shape in bare asyncio. Memory is the growth of the process's
resident size over 10,000 processes that wait for mail.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

import llmos
from benchmarks.form import Floor, main
from llmos.agents.handle import OS

if TYPE_CHECKING:
    from llmos.kernel.kernel import Kernel

LIVE = 1_000
CROWD = 10_000
CALLS = 20_000
ROUNDS = 5_000
WARM_UP = 500


class Latency(NamedTuple):
    """Microseconds."""

    p50: float
    p99: float


# --- programs -------------------------------------------------------------------------------------


async def idle(os: OS) -> None:
    await os.receive()


async def echo(os: OS) -> None:
    while True:
        mail = await os.receive()
        await os.send(mail.sender, mail.body)


async def time_nice(os: OS) -> list[float]:
    return await timed(lambda: os.nice(0), CALLS)


async def time_mail(os: OS, other: int) -> list[float]:
    async def round_trip() -> None:
        await os.send(other, 0)
        await os.receive()

    return await timed(round_trip, ROUNDS)


# --- measures -------------------------------------------------------------------------------------


async def timed(work: Callable[[], Awaitable[Any]], count: int) -> list[float]:
    """Microseconds that each of `count` runs took, after a warm-up."""
    for _ in range(WARM_UP):
        await work()
    spent: list[float] = []
    for _ in range(count):
        started = time.perf_counter_ns()
        await work()
        spent.append((time.perf_counter_ns() - started) / 1_000)
    return spent


def latency(spent: list[float]) -> Latency:
    centiles = statistics.quantiles(spent, n=100)
    return Latency(round(centiles[49], 2), round(centiles[98], 2))


async def bare_call() -> list[float]:
    """A future that the event loop resolves: the least that a call with an answer can be."""
    loop = asyncio.get_running_loop()

    async def hop() -> None:
        future: asyncio.Future[None] = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future

    return await timed(hop, CALLS)


async def bare_mail() -> list[float]:
    """The same round trip over two queues of asyncio."""
    there: asyncio.Queue[int] = asyncio.Queue()
    back: asyncio.Queue[int] = asyncio.Queue()

    async def answer() -> None:
        while True:
            await back.put(await there.get())

    async def round_trip() -> None:
        await there.put(0)
        await back.get()

    answering = asyncio.create_task(answer())
    spent = await timed(round_trip, ROUNDS)
    answering.cancel()
    return spent


async def waiting(kernel: Kernel, count: int) -> int:
    """How many processes wait for mail, once `count` do or all have had their turn."""
    found = 0
    for _ in range(10):
        await asyncio.sleep(0)
        found = sum(process.state == "waiting_ipc" for process in await kernel.os.ps())
        if found >= count:
            break
    return found


async def crowd(home: Path) -> dict[str, float]:
    """10,000 processes at once."""
    async with llmos.boot(home=home) as kernel:
        await kernel.os.wait(await kernel.os.spawn(time_nice))  # what the first use allocates
        gc.collect()
        before = psutil.Process().memory_info().rss
        started = time.perf_counter()
        for _ in range(CROWD):
            await kernel.os.spawn(idle)
        spawned = time.perf_counter()
        await asyncio.sleep(0)
        seconds = time.perf_counter() - started
        gc.collect()
        grown = psutil.Process().memory_info().rss - before
        return {
            "alive": await waiting(kernel, CROWD),
            "bytes_per_process": round(grown / CROWD),
            "spawn_per_s": round(CROWD / seconds),
            "spawn_us": round((spawned - started) / CROWD * 1e6, 1),
        }


async def calls(home: Path) -> dict[str, float]:
    """Latencies among 1,000 live processes."""
    async with llmos.boot(home=home) as kernel:
        for _ in range(LIVE):
            await kernel.os.spawn(idle)
        echoing = await kernel.os.spawn(echo)
        await waiting(kernel, LIVE + 1)
        nice = latency(await value(kernel, time_nice))
        mail = latency(await value(kernel, time_mail, echoing))
    bare, queues = latency(await bare_call()), latency(await bare_mail())
    return {
        "p50_us": nice.p50,
        "p99_us": nice.p99,
        "bare_p50_us": bare.p50,
        "ratio_to_bare": round(nice.p50 / bare.p50, 2),
        "mail_round_trip_p50_us": mail.p50,
        "mail_round_trip_p99_us": mail.p99,
        "queue_round_trip_p50_us": queues.p50,
        "ratio_to_queues": round(mail.p50 / queues.p50, 2),
    }


async def value(kernel: Kernel, program: Callable[..., Any], *args: int) -> Any:
    return await kernel.os.result(await kernel.os.spawn(program, *args))


def measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        # The crowd first: a heap that was used before would hide part of the growth.
        grown = asyncio.run(crowd(Path(folder)))
        return {**asyncio.run(calls(Path(folder))), **grown}


if __name__ == "__main__":
    main(
        "syscalls",
        measure,
        [
            Floor("p50_us", "<", 100),
            Floor("bytes_per_process", "<", 30_000),
            Floor("alive", "==", CROWD),
        ],
    )
