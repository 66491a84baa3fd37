"""Sixteen agents under the kernel against the same prompts one after the other.

The same model file, threads, window, prompts and limit of new tokens on both sides, greedy. Each
round has prompts of its own, so that neither side answers from what it computed before. The sides
alternate, each counts the new tokens that it made, and the medians of tokens per second are
compared.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import llmos
from benchmarks.form import Floor, main
from llmos.agents.handle import OS
from llmos.config import ModelConfig
from llmos.memory.model_store import ModelStore

if TYPE_CHECKING:
    from llama_cpp import Llama

    from llmos.kernel.kernel import Kernel

AGENTS = 16
NEW_TOKENS = 64
WORDS = 70  # about 100 tokens with the chat template
ROUNDS = 2
WINDOW = 1024
_VOCABULARY = [
    "river",
    "stone",
    "lantern",
    "market",
    "winter",
    "copper",
    "letter",
    "garden",
    "thunder",
    "harbour",
    "silver",
    "mountain",
    "weaver",
    "forest",
    "candle",
    "bridge",
    "orchard",
    "signal",
    "feather",
    "window",
    "morning",
    "castle",
    "engine",
    "shadow",
    "island",
    "mirror",
    "pepper",
    "violin",
    "wagon",
    "compass",
]


class Side(NamedTuple):
    """One round of one side."""

    tokens: int
    prompt_tokens: int
    seconds: float


def prompts(round: int) -> list[str]:
    """A round's prompts, which share no beginning."""
    draw = random.Random(round)
    return [
        f"{' '.join(draw.choices(_VOCABULARY, k=WORDS))}. Write a story with these words."
        for _ in range(AGENTS)
    ]


async def agent(os: OS, prompt: str) -> list[int]:
    answer = await os.generate(prompt, max_tokens=NEW_TOKENS)
    return [answer.usage.completion_tokens, answer.usage.prompt_tokens]


async def kernel_round(kernel: Kernel, texts: Sequence[str]) -> Side:
    started = time.perf_counter()
    pids = [await kernel.os.spawn(agent, text) for text in texts]
    counts: list[Any] = await kernel.os.results(pids)
    seconds = time.perf_counter() - started
    return Side(sum(new for new, _ in counts), sum(prompt for _, prompt in counts), seconds)


def llama_round(llama: Llama, texts: Sequence[str]) -> Side:
    started = time.perf_counter()
    usages: list[Any] = []
    for text in texts:
        answer: Any = llama.create_chat_completion(
            messages=[{"role": "user", "content": text}], max_tokens=NEW_TOKENS, temperature=0.0
        )
        usages.append(answer["usage"])
    seconds = time.perf_counter() - started
    tokens = sum(usage["completion_tokens"] for usage in usages)
    return Side(tokens, sum(usage["prompt_tokens"] for usage in usages), seconds)


def threads() -> int:
    return len(os.sched_getaffinity(0))


def open_llama(path: Path) -> Llama:
    from llama_cpp import Llama

    return Llama(
        str(path),
        n_ctx=WINDOW,
        n_batch=512,
        n_threads=threads(),
        n_threads_batch=threads(),
        flash_attn=True,
        verbose=False,
    )


async def rounds(home: Path) -> tuple[list[Side], list[Side]]:
    """Each side's rounds. Both models stay open; the side that waits computes nothing."""
    path = ModelStore().path("smollm2")
    model = ModelConfig(
        source="smollm2",
        driver="llama_cpp",
        weights="shipped",
        context_tokens=WINDOW,
        sequences=AGENTS,
        threads=threads(),
    )
    kernel_sides: list[Side] = []
    llama_sides: list[Side] = []
    llama = open_llama(path)
    async with llmos.boot(home=home, models={"smollm2": model}) as kernel:
        await kernel.os.generate("Hello.", max_tokens=1)  # opens the device
        llama_round(llama, ["Hello."])
        for number in range(ROUNDS):
            texts = prompts(number)
            kernel_sides.append(await kernel_round(kernel, texts))
            llama_sides.append(await asyncio.to_thread(llama_round, llama, texts))
    llama.close()
    return kernel_sides, llama_sides


def measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        kernel_sides, llama_sides = asyncio.run(rounds(Path(folder)))
    ours = statistics.median(side.tokens / side.seconds for side in kernel_sides)
    theirs = statistics.median(side.tokens / side.seconds for side in llama_sides)
    return {
        "ratio": round(ours / theirs, 2),
        "kernel_tokens_per_s": round(ours, 1),
        "llama_tokens_per_s": round(theirs, 1),
        "kernel_tokens": sum(side.tokens for side in kernel_sides),
        "llama_tokens": sum(side.tokens for side in llama_sides),
        "kernel_prompt_tokens": sum(side.prompt_tokens for side in kernel_sides),
        "llama_prompt_tokens": sum(side.prompt_tokens for side in llama_sides),
        "threads": threads(),
    }


if __name__ == "__main__":
    main("batching", measure, [Floor("ratio", ">=", 1.5)])
