"""Thirty-two agents with one long system prompt, with and without sharing what was computed.

Each agent is a program of its own, below init, and shares with the others only what is public: the
system message. The first to come computes it, the others wait for it and fork. The other side is
the same kernel with `kv.sharing = "none"`, where each computes all of its prompt. The same model
file, threads, sequences, prompts and limit of new tokens, greedy. Each round has a system prompt of
its own, so that no side answers from an earlier round. The sides alternate. Each side has the KV
layout that suits it: one buffer, in which forks share cells, where KV is shared (unless `--streams`
is given), and a stream of its own for each sequence where it is not.

Without sharing, a round takes minutes, nearly all of them for prompts, one after the other. So that
side runs a quarter of the agents once, and its time counts four times; `--full` runs them all.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import llmos
from benchmarks.batching import threads
from benchmarks.form import Floor, main_with
from llmos.agents.handle import OS
from llmos.config import KVConfig, ModelConfig, Sharing, Weights
from llmos.kernel.kernel import Kernel
from llmos.syscalls.content import system, user

AGENTS = 32
SYSTEM_TOKENS = 1000
OWN_TOKENS = 40
NEW_TOKENS = 32
SHARED_ROUNDS = 2
PART = 4
CELLS = 4608  # tokens: one system prompt, and what 32 agents have of their own
STEP_MS = 2000  # nobody waits for a single answer here, only for the last
WINDOW = 1152
# Words that are one token each with the space before them.
_WORDS = [
    "river",
    "stone",
    "market",
    "winter",
    "letter",
    "garden",
    "silver",
    "mountain",
    "forest",
    "bridge",
    "window",
    "morning",
    "castle",
    "engine",
    "shadow",
    "island",
    "mirror",
    "wagon",
    "table",
    "summer",
    "village",
    "paper",
    "music",
    "water",
    "green",
    "people",
    "light",
]


class Side(NamedTuple):
    """One round of one side."""

    seconds: float
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int


@asynccontextmanager
async def kernel(
    folder: Path, sharing: Sharing, options: argparse.Namespace
) -> AsyncGenerator[Kernel]:
    """A kernel with its device open."""
    is_unified = not options.streams and sharing == "lineage"
    layout: dict[str, Any] = {"kv_layout": "unified", "kv_cells": CELLS} if is_unified else {}
    model = ModelConfig(
        source="smollm2",
        driver="llama_cpp",
        weights=cast("Weights", options.weights),
        context_tokens=WINDOW,
        sequences=options.agents,
        threads=threads(),
        **layout,
    )
    async with llmos.boot(
        home=folder / sharing,
        models={"smollm2": model},
        kv=KVConfig(sharing=sharing, disk_bytes=0),
        calm_step_ms=STEP_MS,
    ) as booted:
        await booted.os.generate("Hello.", max_tokens=1)
        yield booted


async def agent(os: OS, instructions: str, question: str) -> list[int]:
    answer = await os.generate([system(instructions), user(question)], max_tokens=NEW_TOKENS)
    used = answer.usage
    return [used.prompt_tokens, used.cached_tokens, used.completion_tokens]


async def one_round(booted: Kernel, number: int, agents: int) -> Side:
    """All agents of a round at once."""
    draw = random.Random(number)
    instructions = " ".join(draw.choices(_WORDS, k=SYSTEM_TOKENS))
    questions = [" ".join(draw.choices(_WORDS, k=OWN_TOKENS)) for _ in range(agents)]
    started = time.perf_counter()
    pids = [await booted.os.spawn(agent, instructions, question) for question in questions]
    counts: list[Any] = await booted.os.results(pids)
    seconds = time.perf_counter() - started
    prompt, cached, new = (sum(column) for column in zip(*counts, strict=True))
    return Side(seconds, prompt, cached, new)


async def rounds(folder: Path, options: argparse.Namespace) -> tuple[list[Side], Side]:
    """The rounds with sharing, and the one without between them."""
    async with (
        kernel(folder, "lineage", options) as sharing,
        kernel(folder, "none", options) as alone,
    ):
        shared = [await one_round(sharing, 0, options.agents)]
        unshared = await one_round(alone, 1, unshared_agents(options))
        for number in range(2, SHARED_ROUNDS + 1):
            shared.append(await one_round(sharing, number, options.agents))
    return shared, unshared


def unshared_agents(options: argparse.Namespace) -> int:
    return options.agents if options.full else max(1, options.agents // PART)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        shared, unshared = asyncio.run(rounds(Path(folder), options))
    shared_s = statistics.median(side.seconds for side in shared)
    unshared_s = unshared.seconds * options.agents / unshared_agents(options)
    return {
        "ratio": round(unshared_s / shared_s, 2),
        "shared_s": round(shared_s, 2),
        "unshared_s": round(unshared_s, 2),
        "agents": options.agents,
        "unshared_agents_run": unshared_agents(options),
        "weights": options.weights,
        "shared_layout": "streams" if options.streams else "unified",
        "prompt_tokens": shared[0].prompt_tokens,
        "shared_computed_tokens": shared[0].prompt_tokens - shared[0].cached_tokens,
        "unshared_cached_tokens": unshared.cached_tokens,
        "new_tokens": shared[0].new_tokens,
        "threads": threads(),
    }


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--agents", type=int, default=AGENTS)
    parser.add_argument("--weights", default="shipped", help="the number format of both sides")
    parser.add_argument("--streams", action="store_true", help="a stream a sequence on both sides")
    parser.add_argument("--full", action="store_true", help="run all agents without sharing too")
    return parser


if __name__ == "__main__":
    main_with(arguments(), "shared_prefix", measure, [Floor("ratio", ">=", 8)])
