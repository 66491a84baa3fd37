"""The embedding device: what the cache, the sorting by length and the turns of queries are worth.

Texts are those of `questions.py`: real ones, of very different lengths. Four comparisons, the sides
of each in turn and repeated, medians taken:

- a load in the order in which it came, batches of as many texts as fit, against the device's passes
  of like lengths: texts/s of the same driver;
- the same load again, from memory, and after a restart from disk: texts/s;
- a query while a load is computed, against one to an idle device, and against the time that the
  load takes, behind which it would wait without its turn: milliseconds;
- generation alone against generation beside a load: generated tokens/s, and the load's texts/s.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llmos
from benchmarks.form import Floor, main_with
from benchmarks.questions import documents
from llmos.drivers.contract import ModelSpec
from llmos.drivers.embedding import TorchEmbedding
from llmos.memory.model_store import ModelStore

if TYPE_CHECKING:
    from llmos.agents.handle import OS

ROUNDS = 3
TEXTS = 400
QUERIES = 12
NEW_TOKENS = 96
AGENTS = 4
AT_ONCE = 64


def texts(count: int) -> list[str]:
    """Texts in an order that mixes their lengths; none comes twice."""
    found = [document.text for document in documents()]
    random.Random(0).shuffle(found)
    return found[:count]


def in_order(model: TorchEmbedding, load: Sequence[str]) -> float:
    """Texts/s of a load computed as it comes: each pass has the next texts, whatever their length,
    as many as fit the same number of tokens with their padding.
    """
    most = model.info.batch_tokens
    started = time.perf_counter()
    batch: list[str] = []
    longest = 0
    for text in load:
        tokens = min(model.count(text), model.info.max_tokens)
        if batch and (len(batch) + 1) * max(longest, tokens) > most:
            model.embed(batch)
            batch, longest = [], 0
        batch.append(text)
        longest = max(longest, tokens)
    model.embed(batch)
    return len(load) / (time.perf_counter() - started)


def sorting(load: Sequence[str]) -> dict[str, float]:
    """The driver alone: passes as texts come, and passes of like lengths."""
    model = TorchEmbedding(ModelSpec("minilm", ModelStore().path("minilm")))
    model.embed(load[:AT_ONCE])
    as_it_comes: list[float] = []
    sorted_by_length: list[float] = []
    for _ in range(ROUNDS):
        as_it_comes.append(in_order(model, load))
        started = time.perf_counter()
        model.embed(load)
        sorted_by_length.append(len(load) / (time.perf_counter() - started))
    model.close()
    plain, ours = statistics.median(as_it_comes), statistics.median(sorted_by_length)
    return {"in_order_texts_per_s": plain, "sorted_texts_per_s": ours, "sorting": ours / plain}


async def embedded(os: OS, load: Sequence[str]) -> float:
    """Texts/s of a load asked for in parts."""
    started = time.perf_counter()
    parts = [load[first : first + AT_ONCE] for first in range(0, len(load), AT_ONCE)]
    await asyncio.gather(*(os.embed(part) for part in parts))
    return len(load) / (time.perf_counter() - started)


async def cache(home: Path, load: Sequence[str]) -> dict[str, float]:
    """A load for the first time, again, and again after a restart."""
    async with llmos.boot(home=home) as kernel:
        await kernel.os.embed(["warm"])
        first = await embedded(kernel.os, load)
        again = await embedded(kernel.os, load)
    async with llmos.boot(home=home) as kernel:
        await kernel.os.embed(["warm"])
        from_disk = await embedded(kernel.os, load)
    return {
        "first_texts_per_s": first,
        "memory_texts_per_s": again,
        "disk_texts_per_s": from_disk,
        "cache": from_disk / first,
    }


async def queries(os: OS, name: str) -> list[float]:
    """Milliseconds of queries, one after the other."""
    taken: list[float] = []
    for number in range(QUERIES):
        started = time.perf_counter()
        await os.embed([f"{name}: where is the {number}th lantern of the harbour kept?"])
        taken.append((time.perf_counter() - started) * 1000)
        await os.sleep(0.05)
    return taken


async def turns(load: Sequence[str]) -> dict[str, float]:
    """Queries to an idle device, and while a load of thousands of texts waits."""
    with tempfile.TemporaryDirectory() as folder:
        async with llmos.boot(home=Path(folder)) as kernel:
            await kernel.os.embed(["warm"])
            idle = await queries(kernel.os, "idle")
            busy = asyncio.create_task(embedded(kernel.os, load))
            await kernel.os.sleep(0.2)
            beside = await queries(kernel.os, "beside")
            rate = await busy
    return {
        "query_idle_ms": statistics.median(idle),
        "query_beside_load_ms": statistics.median(beside),
        "query_behind_load_ms": 1000 * len(load) / rate,  # what it would wait without its turn
    }


async def generated(os: OS, number: int) -> float:
    """Generated tokens/s of several agents at once."""
    started = time.perf_counter()
    prompts = [f"Story {number}.{n}: tell me a story about a river." for n in range(AGENTS)]
    answers = await asyncio.gather(
        *(os.generate(prompt, max_tokens=NEW_TOKENS) for prompt in prompts)
    )
    tokens = sum(answer.usage.completion_tokens for answer in answers)
    return tokens / (time.perf_counter() - started)


async def beside(load: Sequence[str]) -> dict[str, float]:
    """Generation alone and beside a load that never ends meanwhile."""
    alone: list[float] = []
    together: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        async with llmos.boot(home=Path(folder)) as kernel:
            await kernel.os.embed(["warm"])
            await generated(kernel.os, 0)
            for number in range(1, 1 + ROUNDS):
                alone.append(await generated(kernel.os, 2 * number))
                unseen = [f"{number} {text}" for text in load]
                busy = asyncio.create_task(kernel.os.embed(unseen))
                await kernel.os.sleep(0.2)
                together.append(await generated(kernel.os, 2 * number + 1))
                busy.cancel()
                await asyncio.wait((busy,))
    one, both = statistics.median(alone), statistics.median(together)
    return {"generation_alone": one, "generation_beside_load": both, "kept": both / one}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    load = texts(TEXTS // 4 if options.quick else TEXTS)
    figures: dict[str, float] = {"texts": len(load), **sorting(load)}
    with tempfile.TemporaryDirectory() as folder:
        figures |= asyncio.run(cache(Path(folder), load))
    figures |= asyncio.run(turns(load)) | asyncio.run(beside(load))
    return {name: round(value, 2) for name, value in figures.items()}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--quick", action="store_true", help="a quarter of the texts")
    return found


FLOORS = (Floor("sorting", ">=", 1.2), Floor("cache", ">=", 20.0), Floor("kept", ">=", 0.7))

if __name__ == "__main__":
    main_with(parser(), "embedding", measure, FLOORS)
