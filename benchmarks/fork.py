"""A fork of a context of 2,000 tokens and the child's first token, against computing it anew.

Through the kernel: a context is opened, and the first token after it is computed from nothing
(`recompute_ms`). Then it is forked again and again, each child asks for its first token
(`child_ms`, a random draw as in best-of-n), and a branch asks for it after a question of its own
(`branch_ms`). `fork_ms` is the syscall `ContextFork` alone. At the driver: `driver_fork_ms` is the
call `fork`, `driver_child_ms` that and the step of the child's first token, which copies what the
fork only noted. Each round has a text of its own; medians over all forks.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import llmos
from benchmarks.form import Floor, main
from llmos.config import ModelConfig
from llmos.drivers.contract import Feed, ModelSpec
from llmos.memory.model_store import ModelStore
from llmos.syscalls.content import user
from llmos.syscalls.options import GREEDY, Sampling

if TYPE_CHECKING:
    from llmos.agents.handle import OS
    from llmos.drivers.llama_cpp import LlamaCpp

TOKENS = 2000
WINDOW = 2304
ROUNDS = 2
FORKS = 4
SEQUENCES = 8
_WORDS = ["river", "stone", "market", "winter", "copper", "letter", "garden", "harbour", "bridge"]


class Side(NamedTuple):
    """Milliseconds of one round; the lists hold one figure a fork."""

    recompute_ms: float
    fork_ms: list[float]
    child_ms: list[float]
    branch_ms: list[float]
    prompt_tokens: int
    cached_tokens: int


class Stopwatch:
    """Milliseconds since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    @property
    def ms(self) -> float:
        return (time.perf_counter() - self._started) * 1000


def text(round: int) -> str:
    """About `TOKENS` tokens that no other round begins with."""
    draw = random.Random(round)
    return f"Story {round}. " + " ".join(draw.choices(_WORDS, k=TOKENS))


async def first_token(os: OS, context: int, question: str = "") -> Any:
    sampling = Sampling(temperature=1.0, seed=random.randrange(2**31))
    return await os.generate(question, context=context, max_tokens=1, sampling=sampling)


async def kernel_round(os: OS, round: int) -> Side:
    parent = await os.context_open([user(text(round))])
    original = await os.context_fork(parent)
    watch = Stopwatch()
    answer = await first_token(os, original)
    side = Side(watch.ms, [], [], [], answer.usage.prompt_tokens, 0)
    children = [original]
    for word in _WORDS[:FORKS]:
        for question, into in (("", side.child_ms), (f"And the {word}?", side.branch_ms)):
            watch = Stopwatch()
            child = await os.context_fork(parent)
            side.fork_ms.append(watch.ms)
            answer = await first_token(os, child, question)
            into.append(watch.ms)
            children.append(child)
    for context in (*children, parent):
        await os.context_close(context)
    return side._replace(cached_tokens=answer.usage.cached_tokens)


def driver_round(model: LlamaCpp, round: int) -> Side:
    tokens = model.tokenize(text(-round - 1))[:TOKENS]
    for sequence in (0, 1):
        model.add(sequence, sampling=GREEDY)
    watch = Stopwatch()
    for start in range(0, TOKENS - 1, model.info.batch_tokens):
        end = min(start + model.info.batch_tokens, TOKENS - 1)
        model.step([Feed(0, tokens[start:end], False)])
    model.step([Feed(0, tokens[-1:], True)])
    side = Side(watch.ms, [], [], [], TOKENS, TOKENS - 1)
    for _ in range(FORKS):
        watch = Stopwatch()
        model.fork(0, 1, TOKENS - 1)
        side.fork_ms.append(watch.ms)
        model.step([Feed(1, tokens[-1:], True)])
        side.child_ms.append(watch.ms)
        model.trim(1, 0)
    model.trim(0, 0)
    return side


def threads() -> int:
    return len(os.sched_getaffinity(0))


async def kernel_rounds(home: Path) -> list[Side]:
    model = ModelConfig(
        source="smollm2",
        driver="llama_cpp",
        context_tokens=WINDOW,
        sequences=SEQUENCES,
        threads=threads(),
        weights="shipped",
    )
    async with llmos.boot(home=home, models={"smollm2": model}) as kernel:
        await kernel.os.generate("Hello.", max_tokens=1)  # opens the device
        return [await kernel_round(kernel.os, round) for round in range(ROUNDS)]


def driver_rounds() -> list[Side]:
    from llmos.drivers.llama_cpp import LlamaCpp

    path = ModelStore().path("smollm2")
    spec = ModelSpec("smollm2", path, context_tokens=WINDOW, sequences=2, threads=threads())
    model = LlamaCpp(spec)
    try:
        return [driver_round(model, 0)]
    finally:
        model.close()


def median(sides: list[Side], name: str) -> float:
    return statistics.median(figure for side in sides for figure in getattr(side, name))


def measure() -> Mapping[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        ours = asyncio.run(kernel_rounds(Path(folder)))
    driver = driver_rounds()
    recompute = statistics.median(side.recompute_ms for side in ours)
    child, branch = median(ours, "child_ms"), median(ours, "branch_ms")
    driver_child = median(driver, "child_ms")
    return {
        "fork_ms": round(median(ours, "fork_ms"), 3),
        "ratio": round(recompute / child, 1),
        "branch_ratio": round(recompute / branch, 1),
        "recompute_ms": round(recompute, 1),
        "child_ms": round(child, 1),
        "branch_ms": round(branch, 1),
        "prompt_tokens": ours[0].prompt_tokens,
        "cached_tokens": ours[0].cached_tokens,
        "driver_fork_ms": round(median(driver, "fork_ms"), 4),
        "driver_child_ms": round(driver_child, 1),
        "driver_ratio": round(driver[0].recompute_ms / driver_child, 1),
        "threads": threads(),
    }


FLOORS = (Floor("fork_ms", "<", 2.0), Floor("driver_fork_ms", "<", 2.0), Floor("ratio", ">=", 50))

if __name__ == "__main__":
    main("fork", measure, FLOORS)
