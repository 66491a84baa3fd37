"""A draft model, with and without, for one chat user.

The small model is the same one in 4 bits (`Q4_0`), which decodes a token in a third of the time and
often says something else; the large one is in 32 bits. Ordinary chat tasks, so that prompt lookup
finds little. Two kernels are open, one of them with `draft`; a task goes to the one and then to the
other, every other time in the opposite order, and only one computes at a time. Each prompt is in KV
before its time is taken. A ratio is of the total times; `kept` is how many guesses were right.

Greedy answers: the same tokens come out on both sides but for near ties, which a pass of another
width may round the other way.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import Any

import llmos
from benchmarks import servers
from benchmarks.form import Floor, main_with
from benchmarks.speculative import ORDINARY, WINDOW, Answer, answer, seconds
from llmos.agents.handle import OS
from llmos.config import ModelConfig
from llmos.syscalls.calls import Generate
from llmos.syscalls.content import user
from llmos.syscalls.options import Sampling

REPEATS = 3


def _models(options: argparse.Namespace) -> dict[str, ModelConfig]:
    sizes: dict[str, Any] = {
        "source": "smollm2",
        "driver": "llama_cpp",
        "context_tokens": WINDOW,
        "sequences": 4,
        "threads": servers.threads(),
    }
    return {
        "large": ModelConfig(**sizes, weights=options.weights, draft="small"),
        "small": ModelConfig(**sizes, weights=options.draft_weights),
    }


async def rounds(options: argparse.Namespace) -> tuple[dict[str, dict[str, list[Answer]]], str]:
    """The answers of each side to each task, and what the device says of its draft model."""
    with_draft = _models(options)
    alone = {"large": with_draft["large"].model_copy(update={"draft": None})}
    found: dict[str, dict[str, list[Answer]]] = {side: {} for side in ("with", "without")}
    async with contextlib.AsyncExitStack() as stack:
        sides: list[tuple[str, OS]] = []
        for side in found:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            models = with_draft if side == "with" else alone
            booting = llmos.boot(home=home, models=models, default_model="large")
            sides.append((side, (await stack.enter_async_context(booting)).os))
        for repeat in range(options.repeats):
            for number, text in enumerate(ORDINARY):
                for side, os in sides if (repeat + number) % 2 else sides[::-1]:
                    await os.call(Generate(messages=[user(text)], max_tokens=1))
                    one = await answer(os, text, Sampling())
                    found[side].setdefault(text, []).append(one)
        devices = (await sides[0][1].stat()).devices
    return found, str(next(device.draft for device in devices if device.name == "large"))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    found, kept = asyncio.run(rounds(options))
    guessing, plain = found["with"], found["without"]
    same = sum(guessing[task][0].tokens == plain[task][0].tokens for task in ORDINARY)
    return {
        "ratio": round(seconds(plain, ORDINARY) / seconds(guessing, ORDINARY), 2),
        "tokens_per_s": round(len(ORDINARY) / seconds(guessing, ORDINARY), 1),
        "tokens_per_s_without": round(len(ORDINARY) / seconds(plain, ORDINARY), 1),
        "kept": kept,
        "same_texts": f"{same} of {len(ORDINARY)}",
        "weights": options.weights,
        "draft_weights": options.draft_weights,
        "repeats": options.repeats,
        "threads": servers.threads(),
    }


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="F32", help="number format of the large model")
    parser.add_argument("--draft-weights", default="Q4_0", help="number format of the small one")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    return parser


if __name__ == "__main__":
    main_with(_options(), "draft", measure, [Floor("ratio", ">=", 1.0)])
