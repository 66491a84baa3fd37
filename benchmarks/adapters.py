"""Sixteen sequences over eight adapters in one batch against one adapter after another, on torch.

The same model, prompts, adapters and limit of new tokens on both sides, greedy, under the kernel.
The one side has all sixteen agents ask at once, each for its own adapter, and their sequences share
every step; the other has the two agents of each adapter ask together, one adapter after another, as
a server must that merges an adapter into its weights or switches between them. All adapters are
attached before the clock starts. They are LoRA folders as peft writes them, of random weights: what
they say does not matter to the time it takes. Each round has prompts of its own, the sides
alternate, and medians of tokens per second are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import llmos
from benchmarks.form import Floor, main_with
from llmos.agents.handle import OS
from llmos.config import ModelConfig
from llmos.drivers.adapter_folder import SETTINGS, WEIGHTS
from llmos.drivers.torch_weights import checkpoint
from llmos.memory.model_store import ModelStore
from llmos.syscalls.learning_results import ModelVersion

if TYPE_CHECKING:
    from llmos.kernel.kernel import Kernel

ADAPTERS = 8
SEQUENCES = 16
RANK = 8
NEW_TOKENS = 24
ROUNDS = 2
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Side(NamedTuple):
    """One round of one side."""

    tokens: int
    seconds: float


def write_adapters(folder: Path, base: Path, count: int) -> list[Path]:
    """Random LoRA folders for a model, on each of its linear layers but the last."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    made = [folder / f"style-{number}" for number in range(count)]
    weights = checkpoint(base) / "model.safetensors"
    with safe_open(weights, framework="pt") as tensors:
        shapes = {
            name.removesuffix(".weight"): tensors.get_slice(name).get_shape()
            for name in tensors.keys()  # noqa: SIM118 - no mapping
            if name.removesuffix(".weight").endswith(LAYERS)
        }
    for number, path in enumerate(made):
        path.mkdir(parents=True)
        draw = torch.Generator().manual_seed(number)
        save_file(
            {
                f"base_model.model.{layer}.lora_{half}.weight": torch.randn(*shape, generator=draw)
                * 0.01
                for layer, (outputs, inputs) in shapes.items()
                for half, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK)))
            },
            path / WEIGHTS,
        )
        settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}
        (path / SETTINGS).write_text(json.dumps(settings))
    return made


def prompts(round: int) -> list[str]:
    """A round's prompts, which share no beginning."""
    return [f"{round * SEQUENCES + number}: tell a short story." for number in range(SEQUENCES)]


async def agent(os: OS, prompt: str, adapter: str) -> int:
    answer = await os.generate(prompt, adapter=adapter, max_tokens=NEW_TOKENS)
    return answer.usage.completion_tokens


async def side(kernel: Kernel, groups: Sequence[Sequence[tuple[str, str]]]) -> Side:
    """Groups of agents one after another, those of a group at once."""
    started = time.perf_counter()
    tokens = 0
    for group in groups:
        pids = [await kernel.os.spawn(agent, prompt, adapter) for prompt, adapter in group]
        counts: list[Any] = await kernel.os.results(pids)
        tokens += sum(counts)
    return Side(tokens, time.perf_counter() - started)


async def rounds(home: Path, count: int) -> tuple[list[Side], list[Side]]:
    source = ModelStore().path("smollm2")
    model = ModelConfig(source="smollm2", driver="torch", sequences=SEQUENCES, context_tokens=512)
    together: list[Side] = []
    apart: list[Side] = []
    folders = write_adapters(home / "made", source, ADAPTERS)
    names = [folder.name for folder in folders]
    async with llmos.boot(home=home, models={"smollm2": model}) as kernel:
        for folder in folders:
            kernel.registry().add(
                ModelVersion(name=folder.name, kind="adapter", base="smollm2", path=str(folder))
            )
            await kernel.os.generate("Hello.", adapter=folder.name, max_tokens=1)
        for number in range(count):
            asks = list(zip(prompts(number), names * (SEQUENCES // ADAPTERS), strict=True))
            together.append(await side(kernel, [asks]))
            other = list(zip(prompts(count + number), names * (SEQUENCES // ADAPTERS), strict=True))
            groups = [[ask for ask in other if ask[1] == name] for name in names]
            apart.append(await side(kernel, groups))
    return together, apart


def measure(options: argparse.Namespace) -> Mapping[str, Any]:
    count = 1 if options.quick else ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        together, apart = asyncio.run(rounds(Path(folder), count))
    ours = statistics.median(one.tokens / one.seconds for one in together)
    theirs = statistics.median(one.tokens / one.seconds for one in apart)
    return {
        "ratio": round(ours / theirs, 2),
        "together_tokens_per_s": round(ours, 1),
        "apart_tokens_per_s": round(theirs, 1),
        "together_tokens": sum(one.tokens for one in together),
        "apart_tokens": sum(one.tokens for one in apart),
        "adapters": ADAPTERS,
        "sequences": SEQUENCES,
        "rank": RANK,
    }


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one round")
    return parser


if __name__ == "__main__":
    main_with(_options(), "adapters", measure, [Floor("ratio", ">=", 2.0)])
