"""Two clients on one device, one of which sends ten times as much: who gets how much service.

Both run through the kernel on the real model and always have more generations waiting than the
device has sequences. Service is counted as the `fair` policy counts it: a computed prompt token is
1, a generated one 2. Counted are generations that end after both have been running for a while.
`fifo` stands beside it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import llmos
from benchmarks.form import Floor, main
from benchmarks.workload import endless, words
from llmos.agents.handle import OS
from llmos.config import ModelConfig
from llmos.syscalls.options import Sampling

SEQUENCES, WINDOW = 4, 256
LIGHT = 6  # generations at once: more than there are sequences
HEAVY = 10 * LIGHT
WORDS, NEW_TOKENS = 16, 16
SETTLE_S, MEASURE_S = 4.0, 16.0
PROMPT_COST, NEW_COST = 1, 2

# Programs of one process can share it: the service that each client got.
SERVICE: Counter[str] = Counter()


async def crowd(os: OS, client: str, width: int) -> None:
    """Keep so many generations under way until killed."""
    seeds = itertools.count()

    async def one() -> None:
        while True:
            draw = random.Random(f"{client} {next(seeds)}")
            answer = await os.generate(
                words(draw, WORDS), sampling=Sampling(logit_bias=endless()), max_tokens=NEW_TOKENS
            )
            usage = answer.usage
            SERVICE[client] += PROMPT_COST * (usage.prompt_tokens - usage.cached_tokens)
            SERVICE[client] += NEW_COST * usage.completion_tokens

    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(one())


async def shares(home: Path, policy: str) -> dict[str, float]:
    """The service of each client, as a part of all, under a policy."""
    model = ModelConfig(
        source="smollm2", driver="llama_cpp", context_tokens=WINDOW, sequences=SEQUENCES
    )
    async with llmos.boot(home=home, policy=policy, models={"smollm2": model}) as kernel:
        await kernel.os.generate("Hello.", max_tokens=1)  # opens the device
        await kernel.os.spawn(crowd, "heavy", HEAVY)
        await kernel.os.spawn(crowd, "light", LIGHT)
        await asyncio.sleep(SETTLE_S)
        SERVICE.clear()
        await asyncio.sleep(MEASURE_S)
        total = SERVICE.total()
        return {client: SERVICE[client] / total for client in ("heavy", "light")}


def measure() -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for policy in ("fair", "fifo"):
            print(f"fairness: {policy}", file=sys.stderr)
            share = asyncio.run(shares(Path(folder) / policy, policy))
            figures[f"{policy}_light_share"] = round(share["light"], 3)
            figures[f"{policy}_heavy_share"] = round(share["heavy"], 3)
    fair = figures["fair_light_share"], figures["fair_heavy_share"]
    return {"unfairness": round(abs(fair[0] - fair[1]), 3), **figures}


if __name__ == "__main__":
    main("fairness", measure, [Floor("unfairness", "<=", 0.1)])
