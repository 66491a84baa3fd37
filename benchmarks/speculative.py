"""Guessing from the prompt: copy-heavy tasks and ordinary ones, with and without.

One chat user under the kernel, so that a step has rows to spare. Two kernels are open on the same
model file, one with `speculation` off; the task goes to the one and then to the other, every other
time in the opposite order, and only one computes at a time. Each task's prompt is in KV before its
time is taken. Copy-heavy tasks are greedy, as a tool call or an edit would be, and of the kind that
this small model does copy; ordinary ones are sampled as chat is. A task's rate is the median over
the repeats, a ratio is of the total times of its kind.

The same tokens come out on both sides but for near ties, which a batch of another shape may round
the other way; `same_texts` says how many of the copy-heavy ones were equal.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import llmos
from benchmarks import servers
from benchmarks.form import Floor, main_with
from benchmarks.workload import endless
from llmos.agents.handle import OS
from llmos.config import ModelConfig
from llmos.syscalls.calls import Generate
from llmos.syscalls.content import user
from llmos.syscalls.options import Sampling

NEW_TOKENS = 96
REPEATS = 3
WINDOW = 1024

_NAMES = (
    "Amelia Brooks, Tomas Lindqvist, Priya Raman, Kwame Mensah, Yuki Tanaka, Elena Petrova, "
    "Omar Haddad, Grace O'Neill, Luca Moretti, Fatima Zahra, Noah Sullivan, Ingrid Olsen, "
    "Pedro Alvarez, Mei Chen, Anton Weber, Sofia Rossi, Daniel Okafor, Hana Novak"
)
_TABLE = """id,name,city,amount
1041,Amelia Brooks,Lisbon,230.50
1042,Tomas Lindqvist,Uppsala,118.00
1043,Priya Raman,Chennai,94.25
1044,Kwame Mensah,Accra,310.75
1045,Yuki Tanaka,Sapporo,62.10
1046,Elena Petrova,Varna,145.90"""
_LOG = """10:00:02 worker-3 started job 881 (resize images)
10:00:07 worker-1 finished job 879 (send mail)
10:00:09 worker-3 error in job 881: file not found: /data/in/cat-17.png
10:00:12 worker-2 started job 882 (index pages)
10:00:15 worker-3 error in job 881: file not found: /data/in/cat-18.png"""
_CODE = """def total_price(items, tax_rate):
    subtotal = 0
    for item in items:
        subtotal += item.price * item.quantity
    return subtotal + subtotal * tax_rate


def average_price(items):
    if not items:
        return 0
    return sum(item.price for item in items) / len(items)
"""
COPYING = (
    f"Repeat this list of names exactly as it is:\n{_NAMES}",
    f"Put these names in a numbered list, one on each line:\n{_NAMES}",
    f"Copy this table exactly as it is:\n{_TABLE}",
    f"Which lines of this log are errors? Quote them in full.\n{_LOG}",
    f"Add a docstring to each function of this code and write all of it:\n\n{_CODE}",
)
ORDINARY = (
    "Write a short story about a lighthouse keeper.",
    "Explain why the sky is blue.",
    "Give advice to somebody who starts a vegetable garden.",
    "What are the differences between cats and dogs?",
    f"What does this code do?\n\n{_CODE}",
)


class Answer(NamedTuple):
    tokens: tuple[int, ...]
    seconds: float


async def answer(os: OS, text: str, sampling: Sampling) -> Answer:
    """One task's answer and the time from the call to its last token."""
    call = Generate(messages=[user(text)], sampling=sampling, max_tokens=NEW_TOKENS)
    started = time.perf_counter()
    made = await os.call(call)
    return Answer(made.token_ids, time.perf_counter() - started)


async def rounds(options: argparse.Namespace) -> dict[str, dict[str, list[Answer]]]:
    """The answers of each side to each task."""
    model = ModelConfig(
        source="smollm2",
        driver="llama_cpp",
        context_tokens=WINDOW,
        sequences=4,
        threads=servers.threads(),
        weights=options.weights,
    )
    tasks = [*COPYING, *ORDINARY]
    found: dict[str, dict[str, list[Answer]]] = {side: {} for side in ("with", "without")}
    async with contextlib.AsyncExitStack() as stack:
        sides: list[tuple[str, OS]] = []
        for side in found:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            kernel = await stack.enter_async_context(
                llmos.boot(home=home, models={"smollm2": model}, speculation=side == "with")
            )
            sides.append((side, kernel.os))
        for repeat in range(options.repeats):
            for number, text in enumerate(tasks):
                for side, os in sides if (repeat + number) % 2 else sides[::-1]:
                    sampling = _sampling(text, repeat)
                    await os.call(Generate(messages=[user(text)], max_tokens=1))
                    one = await answer(os, text, sampling)
                    found[side].setdefault(text, []).append(one)
    return found


def _sampling(text: str, repeat: int) -> Sampling:
    if text in COPYING:
        return Sampling()
    return Sampling(temperature=0.7, seed=repeat, logit_bias=endless())


def seconds(side: dict[str, list[Answer]], tasks: Sequence[str]) -> float:
    """Seconds a token, added over the tasks: each weighs the same, whatever its text's length."""
    return sum(
        statistics.median(one.seconds / max(len(one.tokens), 1) for one in side[task])
        for task in tasks
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    found = asyncio.run(rounds(options))
    guessing, plain = found["with"], found["without"]

    def ratio(tasks: Sequence[str]) -> float:
        return round(seconds(plain, tasks) / seconds(guessing, tasks), 2)

    def rate(side: dict[str, list[Answer]], tasks: Sequence[str]) -> float:
        return round(len(tasks) / seconds(side, tasks), 1)

    same = sum(guessing[task][0].tokens == plain[task][0].tokens for task in COPYING)
    return {
        "copy_ratio": ratio(COPYING),
        "other_ratio": ratio(ORDINARY),
        "copy_tokens_per_s": rate(guessing, COPYING),
        "copy_tokens_per_s_without": rate(plain, COPYING),
        "other_tokens_per_s": rate(guessing, ORDINARY),
        "other_tokens_per_s_without": rate(plain, ORDINARY),
        **{f"copy_task_{number}": ratio([task]) for number, task in enumerate(COPYING, 1)},
        **{f"other_task_{number}": ratio([task]) for number, task in enumerate(ORDINARY, 1)},
        "same_texts": f"{same} of {len(COPYING)}",
        "weights": options.weights,
        "repeats": options.repeats,
        "threads": servers.threads(),
    }


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="tuned", help="number format, as in the configuration")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    return parser


if __name__ == "__main__":
    main_with(
        _options(),
        "speculative",
        measure,
        [Floor("copy_ratio", ">=", 1.3), Floor("other_ratio", ">=", 0.97)],
    )
