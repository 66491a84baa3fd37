"""A person who chats while agents work: how long the person waits, and what the agents lose.

Background agents (nice 10) generate without pause; a chat program (nice -10) asks, streams the
answer, and pauses. Measured by the stream's reader: time to the first piece, and between pieces.
Alone, the chat has the machine to itself; the background's own pace is measured alone too. Beside
the kernel's way stands `fifo`, which serves in order of arrival whoever asks.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import llmos
from benchmarks import servers
from benchmarks.form import Floor, main_with
from benchmarks.workload import endless, words
from llmos.agents.handle import OS
from llmos.config import ModelConfig
from llmos.kernel.kernel import Kernel
from llmos.syscalls.options import Sampling
from llmos.syscalls.results import Delta

BACKGROUND = 16
CHAT_WORDS, CHAT_TOKENS, PAUSE_S = 40, 48, 0.3
WORK_WORDS, WORK_TOKENS = 60, 64
SETTLE_S = 4.0
SETTINGS: dict[str, Any] = {"weights": "shipped"}
ENDLESS = Sampling(logit_bias=endless())


@dataclass
class Meter:
    """Counts the background's new tokens; programs of one process can share it."""

    tokens: int = 0
    started_s: float = field(default_factory=time.perf_counter)

    def restart(self) -> None:
        self.tokens, self.started_s = 0, time.perf_counter()

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / (time.perf_counter() - self.started_s)


METER = Meter()


class Waits(NamedTuple):
    """What the reader of the chat's streams waited for, in seconds."""

    first_s: list[float]
    between_s: list[float]


async def worker(os: OS, seed: int) -> None:
    """Generate one text after the other until killed."""
    draw = random.Random(seed)
    while True:
        seen = 0
        async for piece in os.stream(
            f"{words(draw, WORK_WORDS)}. A story.", sampling=ENDLESS, max_tokens=WORK_TOKENS
        ):
            # A piece may hold several tokens; the end of the stream says how many there were.
            new = 1 if isinstance(piece, Delta) else piece.usage.completion_tokens - seen
            seen += new
            METER.tokens += new


async def chat(os: OS, turns: int) -> list[list[float]]:
    """Ask `turns` questions, each of its own; what each made the reader wait."""
    draw = random.Random("chat")
    first: list[float] = []
    between: list[float] = []
    for _ in range(turns):
        await os.sleep(PAUSE_S)
        last = asked = time.perf_counter()
        async for piece in os.stream(
            f"{words(draw, CHAT_WORDS)}. Why?", sampling=ENDLESS, max_tokens=CHAT_TOKENS
        ):
            now = time.perf_counter()
            if isinstance(piece, Delta):
                (first if last == asked else between).append(now - last)
                last = now
    return [first, between]


def p95(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


async def chatted(kernel: Kernel, turns: int) -> Waits:
    pid = await kernel.os.spawn(chat, turns, nice=-10)
    value: Any = await kernel.os.result(pid)
    return Waits(*value)


async def with_background(
    home: Path, policy: str, *, turns: int, seconds: float
) -> tuple[float, float, Waits]:
    """The background's pace alone and beside a chat, and what the chat waited, under a policy."""
    async with llmos.boot(home=home, policy=policy, models={"smollm2": _model()}) as kernel:
        for seed in range(BACKGROUND):
            await kernel.os.spawn(worker, seed, nice=10)
        await asyncio.sleep(SETTLE_S)
        METER.restart()
        await asyncio.sleep(seconds)
        alone = METER.tokens_per_s
        METER.restart()
        waits = await chatted(kernel, turns)
        return alone, METER.tokens_per_s, waits


async def alone(home: Path, turns: int) -> Waits:
    """The chat with the machine to itself."""
    async with llmos.boot(home=home, models={"smollm2": _model()}) as kernel:
        await kernel.os.generate("Hello.", max_tokens=1)  # opens the device
        return await chatted(kernel, turns)


def _model() -> ModelConfig:
    return ModelConfig(
        source="smollm2",
        driver="llama_cpp",
        context_tokens=1024,
        sequences=BACKGROUND + 1,
        threads=servers.threads(),
        **SETTINGS,
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    turns, seconds = options.turns, options.seconds
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        single = asyncio.run(alone(home / "alone", turns))
        runs: dict[str, tuple[float, float, Waits]] = {}
        for policy in ("priority", "fifo"):
            print(f"interactive: {policy}", file=sys.stderr)
            # First come, first served takes a minute or more for one turn of the chat.
            asked = turns if policy == "priority" else 1
            runs[policy] = asyncio.run(
                with_background(home / policy, policy, turns=asked, seconds=seconds)
            )
    ours, fifo = _shares(single, *runs["priority"]), _shares(single, *runs["fifo"])
    return {
        **ours,
        "ttft_alone_ms": round(1000 * p95(single.first_s), 1),
        "inter_token_alone_ms": round(1000 * p95(single.between_s), 1),
        **{f"fifo_{key}": value for key, value in fifo.items()},
        "background_agents": BACKGROUND,
        "chat_turns": turns,
    }


def _shares(single: Waits, alone: float, beside: float, waits: Waits) -> dict[str, float]:
    first, between = p95(waits.first_s), p95(waits.between_s)
    return {
        "ttft_ratio": round(first / p95(single.first_s), 2),
        "inter_token_ratio": round(between / p95(single.between_s), 2),
        "background_share": round(beside / alone, 2),
        "ttft_ms": round(1000 * first, 1),
        "inter_token_ms": round(1000 * between, 1),
        "background_tokens_per_s": round(beside, 1),
        "background_alone_tokens_per_s": round(alone, 1),
    }


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=12, metavar="N", help="questions of the chat")
    parser.add_argument(
        "--seconds", type=float, default=12.0, metavar="S", help="how long the background is alone"
    )
    return parser


if __name__ == "__main__":
    main_with(
        _options(),
        "interactive",
        measure,
        [
            Floor("ttft_ratio", "<=", 2.0),
            Floor("inter_token_ratio", "<=", 3.0),
            Floor("background_share", ">=", 0.4),
        ],
    )
