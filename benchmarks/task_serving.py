"""Agents that classify at the same time under the kernel against one text after another.

The same trained model folder, texts and threads on both sides. Under the kernel each agent issues
one Classify after the other, of one text each, and all agents at once; the other side gives the
same texts to the model one by one, as a program does that has no queue to share. The model is
MiniLM with a head of 77 classes of random weights: what it answers does not matter to the time it
takes. The texts are customers' questions of Banking77. The sides alternate, and medians of texts
per second are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llmos
from benchmarks.form import Floor, main_with
from llmos.agents.handle import OS
from llmos.drivers.task_folder import TaskHead, write_settings
from llmos.memory.model_store import ModelStore
from llmos.syscalls.learning_results import ModelVersion

if TYPE_CHECKING:
    from llmos.drivers.task_model import TaskModel
    from llmos.kernel.kernel import Kernel

AGENTS = 16
TEXTS = 40  # of each agent
ROUNDS = 3
CLASSES = 77
NAME = "intents-1"
DATA = Path(__file__).parent / "data" / "banking77_train.csv"


def write_model(folder: Path, base: Path) -> None:
    """A task model of random classes on a frozen encoder."""
    from llmos.drivers import encoder_net

    folder.mkdir(parents=True)
    head = TaskHead("intent", "classify", tuple(f"class-{number}" for number in range(CLASSES)))
    write_settings(folder, method="lora", base="minilm", max_length_tokens=128, heads=[head])
    network = encoder_net.new_network(encoder_net.load_body(base, device="cpu"), [head])
    encoder_net.save_heads(network, folder)


def texts(round: int, count: int) -> list[str]:
    """A round's questions."""
    with DATA.open(encoding="utf-8", newline="") as file:
        known = [row["text"] for row in csv.DictReader(file)]
    return random.Random(round).sample(known, count)


async def agent(os: OS, texts: Sequence[str]) -> int:
    for text in texts:
        await os.classify(text, NAME, top_k=1)
    return len(texts)


async def together(kernel: Kernel, texts: Sequence[str]) -> float:
    """Texts per second of all agents at once."""
    started = time.perf_counter()
    pids = [await kernel.os.spawn(agent, list(texts[number::AGENTS])) for number in range(AGENTS)]
    await kernel.os.results(pids)
    return len(texts) / (time.perf_counter() - started)


def apart(model: TaskModel, texts: Sequence[str]) -> float:
    """Texts per second, one after another."""
    started = time.perf_counter()
    for text in texts:
        model.classify([text])
    return len(texts) / (time.perf_counter() - started)


async def rounds(home: Path, *, count: int, each: int) -> tuple[list[float], list[float], float]:
    from llmos.drivers.task_model import TaskModel

    base = ModelStore().find("minilm")
    folder = home / "made" / NAME
    write_model(folder, base)
    model = TaskModel(folder, base)
    ours: list[float] = []
    theirs: list[float] = []
    async with llmos.boot(home=home) as kernel:
        kernel.registry().add(ModelVersion(name=NAME, kind="task", base="minilm", path=str(folder)))
        await kernel.os.classify("Hello.", NAME)  # opens the device
        opened = kernel.task_models.infos()[0].steps
        model.classify(["Hello."])
        for number in range(count):
            asked = texts(number, AGENTS * each)
            ours.append(await together(kernel, asked))
            theirs.append(await asyncio.to_thread(apart, model, asked))
        passes = kernel.task_models.infos()[0].steps - opened
    return ours, theirs, count * AGENTS * each / passes


def measure(options: argparse.Namespace) -> Mapping[str, Any]:
    count, each = (1, 10) if options.quick else (ROUNDS, TEXTS)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs, per_pass = asyncio.run(rounds(Path(folder), count=count, each=each))
    kernel, alone = statistics.median(ours), statistics.median(theirs)
    return {
        "ratio": round(kernel / alone, 2),
        "kernel_texts_per_s": round(kernel, 1),
        "alone_texts_per_s": round(alone, 1),
        "texts_per_pass": round(per_pass, 1),
        "agents": AGENTS,
    }


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one short round")
    return parser


if __name__ == "__main__":
    main_with(_options(), "task_serving", measure, [Floor("ratio", ">=", 2.0)])
