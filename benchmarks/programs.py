"""A mix of short and long agent programs: how long they take under `las`, against `fifo`.

Programs arrive one by one, at moments and in an order that a seed draws, a little faster than the
device serves them. Most are short: one call. A few are long: several calls in one conversation,
with tools between, which together are about half of the work. Nobody tells the kernel which is
which. The same programs at the same times under both policies. First come, first served is the
kernel's own `fifo`, by program: one that returns from a tool does not queue behind later ones.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import llmos
from benchmarks.form import Floor, main
from benchmarks.workload import endless, words
from llmos.agents.handle import OS
from llmos.config import ModelConfig
from llmos.kernel.kernel import Kernel
from llmos.syscalls.content import user
from llmos.syscalls.options import Sampling

PROGRAMS, LONG = 60, 4
SEQUENCES, WINDOW = 2, 2048
GAP_S = 0.25  # between arrivals, on average
POLICIES = ("las", "fifo")
SEEDS = (1,)


class Work(NamedTuple):
    """What a program does: its calls, with a tool's time between two."""

    after_s: float  # since the program before it
    calls: int
    words: int
    new_tokens: int
    tool_s: float

    @property
    def is_long(self) -> bool:
        return self.calls > 1


def mix(seed: int) -> list[Work]:
    """Programs in the order in which they arrive: the long ones somewhere among the short."""
    draw = random.Random(seed)
    kinds = [number < LONG for number in range(PROGRAMS)]
    draw.shuffle(kinds)
    works: list[Work] = []
    for is_long in kinds:
        after_s = draw.expovariate(1 / GAP_S)
        if is_long:
            works.append(Work(after_s, draw.randint(5, 9), 40, 40, draw.uniform(0.1, 0.5)))
        else:
            works.append(Work(after_s, 1, 12, draw.randint(8, 20), 0.0))
    return works


async def program(os: OS, seed: int, calls: int, length: int, new: int, tool_s: float) -> None:
    """Call, use a tool, call again."""
    draw = random.Random(seed)
    sampling = Sampling(temperature=1.0, seed=seed, logit_bias=endless())
    context = await os.context_open()
    for call in range(calls):
        if call:
            await os.sleep(tool_s)
        text = user(words(draw, length))
        await os.generate([text], context=context, sampling=sampling, max_tokens=new)


async def completions(kernel: Kernel, works: Sequence[Work]) -> list[float]:
    """Run the programs; seconds from each one's arrival to its end."""

    async def one(number: int, work: Work) -> float:
        started = time.perf_counter()
        _, calls, length, new, tool_s = work
        pid = await kernel.os.spawn(program, number, calls, length, new, tool_s)
        await kernel.os.result(pid)
        return time.perf_counter() - started

    tasks: list[asyncio.Task[float]] = []
    for number, work in enumerate(works):
        await asyncio.sleep(work.after_s)
        tasks.append(asyncio.create_task(one(number, work)))
    return list(await asyncio.gather(*tasks))


async def side(home: Path, policy: str, works: Sequence[Work]) -> list[float]:
    model = ModelConfig(
        source="smollm2", driver="llama_cpp", context_tokens=WINDOW, sequences=SEQUENCES
    )
    async with llmos.boot(home=home, policy=policy, models={"smollm2": model}) as kernel:
        await kernel.os.generate("Hello.", max_tokens=1)  # opens the device
        return await completions(kernel, works)


def measure() -> dict[str, Any]:
    ran: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    short: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            works = mix(seed)
            for policy in POLICIES:
                print(f"programs: {policy}, mix {seed}", file=sys.stderr)
                times = asyncio.run(side(Path(folder) / f"{policy}{seed}", policy, works))
                ran[policy] += times
                pairs = zip(times, works, strict=True)
                short[policy] += [seconds for seconds, work in pairs if not work.is_long]
    figures = {policy: _figures(ran[policy], short[policy]) for policy in POLICIES}
    las, fifo = figures["las"], figures["fifo"]
    return {
        "mean_ratio": round(fifo["mean_s"] / las["mean_s"], 2),
        "p95_ratio": round(fifo["p95_s"] / las["p95_s"], 2),
        **{
            f"{policy}_{key}": value
            for policy in POLICIES
            for key, value in figures[policy].items()
        },
        "programs": PROGRAMS * len(SEEDS),
        "long_programs": sum(work.is_long for seed in SEEDS for work in mix(seed)),
    }


def _figures(times: Sequence[float], short: Sequence[float]) -> dict[str, float]:
    return {
        "mean_s": round(statistics.fmean(times), 2),
        "p95_s": round(sorted(times)[int(0.95 * len(times))], 2),
        "short_mean_s": round(statistics.fmean(short), 2),
    }


if __name__ == "__main__":
    main("programs", measure, [Floor("mean_ratio", ">=", 1.5)])
