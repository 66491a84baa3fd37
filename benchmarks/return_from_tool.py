"""Agents that go off to tools and come back, with contexts four times what the device holds.

Four agents, one sequence on the device, eight rounds: an agent calls the model, waits for a tool,
and calls again with its whole conversation and the tool's result. Under the kernel, what the device
has no room for goes to host memory and is restored; the other side is the same kernel without that
tier (`kv.host_bytes = 0`), which computes again what its sequence does not hold any more. The same
model file, threads, prompts, waits and limit of new tokens, greedy.

`ratio` compares the makespans of the eight rounds, decoding and waiting for tools included; the
first calls, which either side must compute in full, are over before the clock starts.

`gap_to_optimum` is another matter: how well the kernel chooses what to keep, when keeping is scarce
and a miss is dear. The kernel's own bookkeeping serves a simulated trace of agents that each return
after a time of their own, more or less; the tokens that it had to compute again are compared with
Bélády's optimum, which knows the future. `lru_gap` is the same with nothing learned about returns.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import random
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import llmos
from benchmarks.batching import threads
from benchmarks.form import Floor, main_with
from benchmarks.simulation import belady_misses
from llmos.agents.handle import OS
from llmos.config import KVConfig, ModelConfig, Weights
from llmos.kernel.kernel import Kernel
from llmos.memory.kv import KVSpace
from llmos.memory.kv_owner import Owner
from llmos.memory.returns import Returns
from llmos.syscalls.content import assistant, user

AGENTS = 4
SEQUENCES = 1
ROUNDS = 8
FIRST_WORDS = 300
RESULT_WORDS = 12
NEW_TOKENS = 4
WINDOW = 768
WAITS_S = (0.05, 0.5)
_WORDS = ["river", "stone", "market", "winter", "letter", "garden", "silver", "mountain", "bridge"]

# The simulated trace.
SIM_AGENTS, SIM_SEQUENCES, SIM_RETURNS = 32, 8, 4000
SIM_CONTEXT_TOKENS = 200
SIM_GAPS_S, SIM_JITTER, SIM_CALL_S = (1.0, 30.0), 0.5, 0.02


class Side(NamedTuple):
    """One side: seconds of all rounds but the first calls; tokens of all."""

    seconds: float
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int


@asynccontextmanager
async def kernel(
    folder: Path, host_bytes: int | None, options: argparse.Namespace
) -> AsyncGenerator[Kernel]:
    """A kernel with its device open."""
    model = ModelConfig(
        source="smollm2",
        driver="llama_cpp",
        weights=cast("Weights", options.weights),
        context_tokens=WINDOW,
        sequences=SEQUENCES,
        threads=threads(),
    )
    async with llmos.boot(
        home=folder / str(host_bytes),
        models={"smollm2": model},
        kv=KVConfig(host_bytes=host_bytes, disk_bytes=0),
    ) as booted:
        await booted.os.generate("Hello.", max_tokens=1)
        yield booted


async def agent(os: OS, parent: int, number: int, rounds: int) -> list[int]:
    """One agent: a first context, and then a tool and a call in each round."""
    draw = random.Random(number)
    messages = [user(" ".join(draw.choices(_WORDS, k=FIRST_WORDS)))]
    used = [0, 0, 0]
    for round in range(rounds + 1):
        answer = await os.generate(messages, max_tokens=NEW_TOKENS)
        messages += [assistant(answer.text), user(" ".join(draw.choices(_WORDS, k=RESULT_WORDS)))]
        usage = answer.usage
        counts = (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        used = [sum(pair) for pair in zip(used, counts, strict=True)]
        if round == 0:  # all start together, when each has its first answer
            await os.send(parent, "ready")
            await os.receive()
        if round < rounds:
            await os.sleep(draw.uniform(*WAITS_S))
    return used


async def one_side(booted: Kernel, options: argparse.Namespace) -> Side:
    os = booted.os
    pids = [await os.spawn(agent, os.pid, number, options.rounds) for number in range(AGENTS)]
    for _ in pids:
        await os.receive()
    started = time.perf_counter()
    for pid in pids:
        await os.send(pid, "go")
    counts: list[Any] = await os.results(pids)
    seconds = time.perf_counter() - started
    return Side(seconds, *(sum(column) for column in zip(*counts, strict=True)))


async def sides(folder: Path, options: argparse.Namespace) -> tuple[Side, Side]:
    async with kernel(folder, None, options) as kept:
        ours = await one_side(kept, options)
    async with kernel(folder, 0, options) as recomputing:
        theirs = await one_side(recomputing, options)
    return ours, theirs


# --- how well is chosen what to keep ---


def missed_tokens(*, learns: bool) -> tuple[int, list[tuple[int, int]]]:
    """Tokens that the kernel computed again in a simulated trace, and the trace."""
    now_s = 0.0
    kv = KVSpace(
        sequences=SIM_SEQUENCES,
        context_tokens=SIM_CONTEXT_TOKENS,
        returns=Returns(lambda: now_s),
    )
    draw = random.Random(4)
    low, high = SIM_GAPS_S
    gaps = [low * (high / low) ** draw.random() for _ in range(SIM_AGENTS)]
    coming = [(draw.uniform(0, gap), number) for number, gap in enumerate(gaps)]
    heapq.heapify(coming)
    known = dict.fromkeys(range(SIM_AGENTS), 0)
    missed, trace = 0, list[tuple[int, int]]()
    for _ in range(SIM_RETURNS):
        at_s, number = heapq.heappop(coming)
        now_s = max(now_s, at_s) + SIM_CALL_S
        # A context of one length, so that a sequence is a context's worth of tokens.
        tokens = [number + 1] * SIM_CONTEXT_TOKENS
        grant = kv.acquire(tokens, Owner(domain=str(number), program=number + 1 if learns else 0))
        assert grant is not None
        missed += max(0, known[number] - 1 - grant.reused_tokens)
        kv.append(grant.sequence, tokens[grant.reused_tokens :])
        kv.release(grant.sequence, keep=True)
        known[number] = SIM_CONTEXT_TOKENS
        trace.append((number, SIM_CONTEXT_TOKENS))
        away_s = gaps[number] * draw.uniform(1 - SIM_JITTER, 1 + SIM_JITTER)
        heapq.heappush(coming, (now_s + away_s, number))
    return missed, trace


def gaps_to_optimum() -> tuple[float, float]:
    """How many times the optimum's tokens are computed again: learning returns, and as LRU."""
    learned, trace = missed_tokens(learns=True)
    blind, _ = missed_tokens(learns=False)
    optimum = belady_misses(trace, SIM_SEQUENCES * SIM_CONTEXT_TOKENS)
    return learned / optimum, blind / optimum


def measure(options: argparse.Namespace) -> dict[str, Any]:
    learned, blind = gaps_to_optimum()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = asyncio.run(sides(Path(folder), options))
    return {
        "ratio": round(theirs.seconds / ours.seconds, 2),
        "kept_s": round(ours.seconds, 2),
        "recomputed_s": round(theirs.seconds, 2),
        "kept_computed_tokens": ours.prompt_tokens - ours.cached_tokens,
        "recomputed_computed_tokens": theirs.prompt_tokens - theirs.cached_tokens,
        "prompt_tokens": ours.prompt_tokens,
        "new_tokens": ours.new_tokens,
        "recomputed_new_tokens": theirs.new_tokens,
        "gap_to_optimum": round(learned, 2),
        "lru_gap": round(blind, 2),
        "agents": AGENTS,
        "sequences": SEQUENCES,
        "rounds": options.rounds,
        "weights": options.weights,
        "threads": threads(),
    }


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--weights", default="shipped", help="the number format of both sides")
    return parser


if __name__ == "__main__":
    main_with(
        arguments(),
        "return_from_tool",
        measure,
        [Floor("ratio", ">=", 5), Floor("gap_to_optimum", "<=", 1.3)],
    )
