"""An adapter in torch against its conversion in llama.cpp: do they say the same token?

A small LoRA adapter is trained here on real rows (Banking77: a customer's message, and its intent),
by `Finetune`, on the weights that both drivers compute with. Then both read the same held-out
conversations, and at every position their most likely next tokens are compared. Beside it: the
same without the adapter, which is how far the two drivers agree at all, and the share of positions
at which the adapter changes the token, so that agreement says something. The GGUF weights are in a
format that holds the shipped ones without loss (F16), and torch computes in single precision.
With `--merged` the exported GGUF file is compared with torch too.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import random
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import llmos
from benchmarks.form import Floor, main_with
from llmos.config import ModelConfig
from llmos.drivers.contract import Feed, LanguageModel, ModelSpec
from llmos.drivers.llama_requantise import requantised
from llmos.drivers.opening import DriverName, open_language_model
from llmos.memory.model_store import ModelStore
from llmos.syscalls.content import Message, assistant, system, user
from llmos.syscalls.learning import Example
from llmos.syscalls.options import Sampling

ROWS = Path(__file__).parent / "data" / "banking77_train.csv"
STEPS, HELD_OUT = 40, 96
SEQUENCES = 16
WINDOW = 256
INSTRUCTION = "Name the intent of the bank customer's message."


class Said(NamedTuple):
    """The most likely token of a position, and its log-probability."""

    token: int
    logprob: float


def rows(count: int, *, seed: int = 0) -> list[tuple[Message, ...]]:
    """Conversations that end with the intent's name."""
    with ROWS.open(newline="", encoding="utf-8") as file:
        found = [(row["text"], row["category"].replace("_", " ")) for row in csv.DictReader(file)]
    random.Random(seed).shuffle(found)
    return [(system(INSTRUCTION), user(text), assistant(label)) for text, label in found[:count]]


async def trained(home: Path, examples: Sequence[tuple[Message, ...]], steps: int) -> Path:
    """Train an adapter; where its files are."""
    async with llmos.boot(home=home, models={"chat": _MODEL}, default_model="chat") as kernel:
        data = [Example(messages=messages) for messages in examples]
        job = await kernel.os.finetune(data, "intents", max_steps=steps, learning_rate=1e-3)
        result = await kernel.os.result(job)
        print(f"trained: loss {result['eval_loss_before']:.2f} -> {result['eval_loss_after']:.2f}")
        return kernel.registry().load("intents")


async def exported(home: Path) -> Path:
    """The adapter merged into a GGUF file of F16 weights."""
    async with llmos.boot(home=home, models={"chat": _MODEL}, default_model="chat") as kernel:
        return Path((await kernel.os.model_export("intents", "gguf")).path)


_MODEL = ModelConfig(source="smollm2", driver="torch", context_tokens=512)


def opened(driver: DriverName, path: Path) -> LanguageModel:
    dtype = "float32" if driver == "torch" else "auto"
    spec = ModelSpec("smollm2", path, context_tokens=WINDOW, sequences=SEQUENCES, dtype=dtype)
    return open_language_model(driver, spec)


def likeliest(
    driver: LanguageModel, texts: Sequence[Sequence[int]], adapter: str | None
) -> list[Said]:
    """What a driver would say after each token of the texts, a text after the other."""
    sampling = Sampling(temperature=0, logprobs=0)
    said: list[list[Said]] = [[] for _ in texts]
    for start in range(0, len(texts), SEQUENCES):
        batch = dict(enumerate(texts[start : start + SEQUENCES]))
        for sequence, tokens in batch.items():
            driver.add(sequence, sampling=sampling, prompt=tokens, adapter=adapter)
        for place in range(max(map(len, batch.values()))):
            feeds = [
                Feed(sequence, [tokens[place]], sample=True)
                for sequence, tokens in batch.items()
                if place < len(tokens)
            ]
            for one in driver.step(feeds):
                assert one.logprob is not None
                said[start + one.sequence].append(Said(one.token, one.logprob))
        for sequence in batch:
            driver.trim(sequence, 0)
    return [one for text in said for one in text]


def share(pairs: Iterable[tuple[Said, Said]]) -> float:
    """At how many positions the token is the same."""
    same = [one.token == other.token for one, other in pairs]
    return sum(same) / len(same)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    steps, held_out = (8, 16) if options.quick else (STEPS, HELD_OUT)
    source = ModelStore().path("smollm2")
    conversations = rows(4 * steps + 40 + held_out)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        adapter = asyncio.run(trained(home, conversations[held_out:], steps))
        files: dict[str, tuple[DriverName, Path]] = {
            "torch": ("torch", source),
            "llama": ("llama_cpp", requantised(source, "F16")),
        }
        if options.merged:
            files["merged"] = ("llama_cpp", asyncio.run(exported(home)))
        texts: list[list[int]] = []
        found: dict[tuple[str, str | None], list[Said]] = {}
        for name, (driver_name, path) in files.items():
            driver = opened(driver_name, path)
            texts = texts or [driver.render(one)[:WINDOW] for one in conversations[:held_out]]
            if name != "merged":
                found[name, None] = likeliest(driver, texts, None)
                driver.attach("intents", adapter)
            attached = None if name == "merged" else "intents"
            found[name, "intents"] = likeliest(driver, texts, attached)
            driver.close()
    torch, llama = found["torch", "intents"], found["llama", "intents"]
    pairs = list(zip(torch, llama, strict=True))
    agreed = [one.logprob - other.logprob for one, other in pairs if one.token == other.token]
    plain = zip(found["torch", None], found["llama", None], strict=True)
    merged = found.get(("merged", "intents"))
    return {
        "positions": len(pairs),
        "steps_trained": steps,
        "top1_agreement": round(share(pairs), 4),
        "top1_agreement_without_adapter": round(share(plain), 4),
        "changed_by_adapter": round(1 - share(zip(found["torch", None], torch, strict=True)), 4),
        "mean_logprob_difference": round(sum(map(abs, agreed)) / len(agreed), 4),
        "merged_top1_agreement": None
        if merged is None
        else round(share(zip(torch, merged, strict=True)), 4),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer steps and rows")
    parser.add_argument("--merged", action="store_true", help="the exported GGUF file too")
    main_with(parser, "gguf_parity", measure, [Floor("top1_agreement", ">=", 0.95)])
