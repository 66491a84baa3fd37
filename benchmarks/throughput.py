"""Sixteen independent agents under the kernel against the bare engine and its usual front ends.

The bare engine is a loop on llama.cpp's low-level API (`raw_loop.py`). The same model file,
threads, window, prompts and greedy choice on all sides, and the same number of new tokens: ends of
text are forbidden where a side would stop at one. Each round has prompts of its own; the sides
alternate and medians of tokens per second are compared. The ratio to the bare loop is the median
of each round's own, since a machine's pace drifts by more than the two differ.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from llama_cpp import Llama

import llmos
from benchmarks import servers
from benchmarks.form import Floor, main_with
from benchmarks.raw_loop import RawLoop
from benchmarks.workload import endless, words
from llmos.agents.handle import OS
from llmos.config import ModelConfig
from llmos.memory.model_store import ModelStore
from llmos.syscalls.calls import Generate
from llmos.syscalls.options import Sampling

AGENTS = 16
NEW_TOKENS = 128
PROMPT_WORDS = 40
WINDOW = 512
SIZES = servers.Sizes(AGENTS, WINDOW, servers.threads())
SETTINGS: dict[str, Any] = {"weights": "shipped"}

# One round of one side: texts in, new tokens out.
Round = Callable[[Sequence[str]], Awaitable[int]]


def prompts(round: int) -> list[str]:
    """A round's prompts, which share no beginning."""
    draw = random.Random(round)
    return [f"{words(draw, PROMPT_WORDS)}. A story with these words:" for _ in range(AGENTS)]


async def agent(os: OS, text: str) -> int:
    """Continue a text under the kernel."""
    sampling = Sampling(logit_bias=endless())
    made = await os.call(Generate(prompt=text, sampling=sampling, max_tokens=NEW_TOKENS))
    return made.usage.completion_tokens


@contextlib.asynccontextmanager
async def kernel_side(home: Path) -> AsyncGenerator[Round]:
    model = ModelConfig(
        source="smollm2",
        driver="llama_cpp",
        context_tokens=SIZES.window,
        sequences=SIZES.sequences,
        threads=SIZES.threads,
        **SETTINGS,
    )
    async with llmos.boot(home=home, models={"smollm2": model}) as kernel:

        async def run(texts: Sequence[str]) -> int:
            pids = [await kernel.os.spawn(agent, text) for text in texts]
            made: list[Any] = await kernel.os.results(pids)
            return sum(made)

        yield run


@contextlib.asynccontextmanager
async def raw_side(path: Path) -> AsyncGenerator[Round]:
    with contextlib.closing(
        RawLoop(path, sequences=SIZES.sequences, window=SIZES.window, threads=SIZES.threads)
    ) as loop:

        async def run(texts: Sequence[str]) -> int:
            read = [loop.tokenize(text) for text in texts]
            return await asyncio.to_thread(loop.run, read, NEW_TOKENS)

        yield run


@contextlib.asynccontextmanager
async def serial_side(path: Path) -> AsyncGenerator[Round]:
    with contextlib.closing(open_llama(path)) as llama:

        def complete(texts: Sequence[str]) -> int:
            options: Any = {"max_tokens": NEW_TOKENS, "temperature": 0.0, "logit_bias": endless()}
            answers: list[Any] = [llama.create_completion(text, **options) for text in texts]
            return sum(answer["usage"]["completion_tokens"] for answer in answers)

        async def run(texts: Sequence[str]) -> int:
            return await asyncio.to_thread(complete, texts)

        yield run


def open_llama(path: Path) -> Llama:
    return Llama(
        str(path),
        n_ctx=SIZES.window,
        n_batch=512,
        n_threads=SIZES.threads,
        n_threads_batch=SIZES.threads,
        flash_attn=True,
        verbose=False,
    )


@contextlib.asynccontextmanager
async def server_side(binary: Path, path: Path) -> AsyncGenerator[Round]:
    flags = servers.separate_streams(SIZES)
    with servers.llama_server(binary, path, SIZES, flags) as serving:
        async with httpx.AsyncClient(base_url=serving.url, timeout=None) as client:

            async def complete(text: str) -> int:
                body = {"prompt": text, "max_tokens": NEW_TOKENS, "temperature": 0.0}
                answer = await client.post(
                    "/v1/completions", json={**body, "logit_bias": endless()}
                )
                made: int = answer.raise_for_status().json()["usage"]["completion_tokens"]
                return made

            async def run(texts: Sequence[str]) -> int:
                return sum(await asyncio.gather(*(complete(text) for text in texts)))

            yield run


async def rounds(options: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens per second of each side's rounds. All stay open; who waits computes nothing."""
    path = ModelStore().path("smollm2")
    rates: dict[str, list[float]] = {}
    async with contextlib.AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides: dict[str, Round] = {
            "kernel": await stack.enter_async_context(kernel_side(home)),
            "raw": await stack.enter_async_context(raw_side(path)),
        }
        if options.server is not None:
            side = server_side(options.server, path)
            sides["server"] = await stack.enter_async_context(side)
        sides["serial"] = await stack.enter_async_context(serial_side(path))
        for run in sides.values():
            await run(["Hello."])
        for number in range(options.rounds):
            for name, run in _alternated(sides, number):
                if name == "serial" and number >= options.serial_rounds:
                    continue
                rate = await _rate(run, prompts(number))
                print(f"throughput: {name} {rate:.1f} tokens/s", file=sys.stderr)
                rates.setdefault(name, []).append(rate)
    return rates


def _alternated(sides: dict[str, Round], number: int) -> list[tuple[str, Round]]:
    """The sides, every other round in the opposite order: neither always runs second."""
    listed = list(sides.items())
    return listed if number % 2 == 0 else listed[::-1]


async def _rate(run: Round, texts: Sequence[str]) -> float:
    started = time.perf_counter()
    made = await run(texts)
    seconds = time.perf_counter() - started
    if made != len(texts) * NEW_TOKENS:
        raise RuntimeError(f"{made} new tokens instead of {len(texts) * NEW_TOKENS}")
    return made / seconds


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rates = asyncio.run(rounds(options))
    kernel = rates["kernel"]
    medians = {name: statistics.median(listed) for name, listed in rates.items()}
    paired = [ours / raw for ours, raw in zip(kernel, rates["raw"], strict=True)]
    return {
        "vs_raw": round(statistics.median(paired), 3),
        "vs_serial": _ratio(medians, "serial"),
        "vs_server": _ratio(medians, "server"),
        **{f"{name}_tokens_per_s": round(rate, 1) for name, rate in medians.items()},
        "new_tokens_per_round": AGENTS * NEW_TOKENS,
        "rounds": options.rounds,
        "threads": SIZES.threads,
    }


def _ratio(medians: Mapping[str, float], side: str) -> float | None:
    """The kernel's rate to a side's; None when the side was left out."""
    return round(medians["kernel"] / medians[side], 2) if side in medians else None


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", type=Path, metavar="PATH", help="a llama-server binary")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds of each side")
    parser.add_argument(
        "--serial-rounds", type=int, default=1, metavar="N", help="rounds of the slowest side"
    )
    return parser


if __name__ == "__main__":
    main_with(
        _options(),
        "throughput",
        measure,
        [
            Floor("vs_raw", ">=", 0.95),
            Floor("vs_serial", ">=", 2.0),
            Floor("vs_server", ">=", 1.0),
        ],
    )
