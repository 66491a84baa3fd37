"""The torch driver against transformers: 16 prompts of mixed lengths, the same weights.

The driver serves prompts that arrive over time, through a small loop: all that decode, and then as
much of the prompts as a step takes. Its time counts from the first arrival. The other sides have
all prompts at the start: transformers' own continuous batching (`generate_batch`), one batch padded
to the longest prompt (`generate`), and one prompt after another (`generate`; a quarter of the
prompts, for it takes longest). All compute the converted checkpoint in single precision, greedily,
with the same threads. A round runs each side once; each counts the tokens that it made, and the
medians of new tokens per second are compared.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.form import Floor, main
from llmos.drivers.contract import Feed, LanguageModel, ModelSpec
from llmos.drivers.opening import open_language_model
from llmos.drivers.torch_weights import checkpoint, quiet
from llmos.memory.model_store import ModelStore
from llmos.syscalls.options import GREEDY

PROMPTS = 16
LENGTHS = (16, 160)  # tokens of the shortest and the longest prompt
NEW_TOKENS = 32
ARRIVAL_S = 0.05  # between two prompts
STEP_TOKENS = 256
ROUNDS = 2
FLOORS = [
    Floor("vs_generate_batch", ">=", 3.0),
    Floor("vs_padded", ">=", 1.0),
    Floor("vs_sequential", ">=", 5.0),
]

Prompts = Sequence[Sequence[int]]


def prompts(number: int) -> Prompts:
    """A round's prompts: tokens drawn from the plain part of the vocabulary."""
    draw = random.Random(number)
    shortest, longest = LENGTHS
    step = (longest - shortest) / (PROMPTS - 1)
    found = [
        [draw.randrange(1000, 40_000) for _ in range(round(shortest + step * place))]
        for place in range(PROMPTS)
    ]
    draw.shuffle(found)
    return found


def rate(serve: Callable[[Prompts], int], texts: Prompts) -> float:
    """New tokens per second of one side."""
    started = time.perf_counter()
    tokens = serve(texts)
    return tokens / (time.perf_counter() - started)


# --- sides ----------------------------------------------------------------------------------------


def driver_side(model: LanguageModel) -> Callable[[Prompts], int]:
    def serve(texts: Prompts) -> int:
        started = time.perf_counter()
        # By sequence: what it is to be fed, and the tokens that it still makes.
        pending: dict[int, list[int]] = {}
        left = dict.fromkeys(range(len(texts)), NEW_TOKENS)
        arrived = 0
        while left:
            now = time.perf_counter() - started
            while arrived < len(texts) and arrived * ARRIVAL_S <= now:
                model.add(arrived, sampling=GREEDY)
                pending[arrived] = list(texts[arrived])
                arrived += 1
            for sampled in model.step(planned(pending)):
                left[sampled.sequence] -= 1
                pending[sampled.sequence] = [sampled.token]
                if not left[sampled.sequence]:
                    del left[sampled.sequence], pending[sampled.sequence]
                    model.trim(sampled.sequence, 0)
        return len(texts) * NEW_TOKENS

    return serve


def planned(pending: dict[int, list[int]]) -> list[Feed]:
    """A step's feeds, shortest first; what it feeds is taken from `pending`."""
    room = STEP_TOKENS
    feeds: list[Feed] = []
    for sequence, tokens in sorted(pending.items(), key=lambda item: len(item[1])):
        taken = tokens[:room]
        if not taken:
            continue
        room -= len(taken)
        pending[sequence] = tokens[len(taken) :]
        feeds.append(Feed(sequence, taken, sample=not pending[sequence]))
    return feeds


def batch_side(model: Any) -> Callable[[Prompts], int]:
    from transformers import GenerationConfig

    # No token ends a generation early.
    settings = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1)

    def serve(texts: Prompts) -> int:
        answers = model.generate_batch(
            inputs=[list(text) for text in texts], generation_config=settings
        )
        return sum(len(answer.generated_tokens) for answer in answers.values())

    return serve


def padded_side(model: Any) -> Callable[[Prompts], int]:
    import torch

    def serve(texts: Prompts) -> int:
        longest = max(map(len, texts))
        gaps = [longest - len(text) for text in texts]
        ids = [[0] * gap + list(text) for gap, text in zip(gaps, texts, strict=True)]
        seen = [[0] * gap + [1] * (longest - gap) for gap in gaps]
        with torch.inference_mode():
            out = model.generate(
                torch.tensor(ids),
                attention_mask=torch.tensor(seen),
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=0,
            )
        return int(out.shape[1] - longest) * len(texts)

    return serve


def sequential_side(model: Any) -> Callable[[Prompts], int]:
    one = padded_side(model)
    return lambda texts: sum(one([text]) for text in texts)


def load_peer(path: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return loaded.eval().requires_grad_(False)


def measure() -> dict[str, float]:
    path = ModelStore().path("smollm2")
    threads = len(os.sched_getaffinity(0))
    spec = ModelSpec(
        "smollm2",
        path,
        context_tokens=LENGTHS[1] + NEW_TOKENS,
        sequences=PROMPTS,
        batch_tokens=STEP_TOKENS,
        threads=threads,
    )
    driver = open_language_model("torch", spec)
    peer, paged = load_peer(checkpoint(path)), load_peer(checkpoint(path))
    ours, padded, one_by_one = driver_side(driver), padded_side(peer), sequential_side(peer)
    batched = batch_side(paged)
    rates: dict[str, list[float]] = {"driver": [], "padded": [], "sequential": [], "batch": []}
    for number in range(ROUNDS):
        texts = prompts(number)
        rates["driver"].append(rate(ours, texts))
        rates["padded"].append(rate(padded, texts))
        rates["sequential"].append(rate(one_by_one, texts[::4]))
        rates["batch"].append(rate(batched, texts))
    driver.close()
    median = {side: statistics.median(values) for side, values in rates.items()}
    return {
        "vs_generate_batch": round(median["driver"] / median["batch"], 2),
        "vs_padded": round(median["driver"] / median["padded"], 2),
        "vs_sequential": round(median["driver"] / median["sequential"], 2),
        "driver_tokens_per_s": round(median["driver"], 1),
        "generate_batch_tokens_per_s": round(median["batch"], 1),
        "padded_tokens_per_s": round(median["padded"], 1),
        "sequential_tokens_per_s": round(median["sequential"], 1),
        "prompts": PROMPTS,
        "new_tokens_each": NEW_TOKENS,
        "threads": threads,
    }


if __name__ == "__main__":
    main("torch_batching", measure, FLOORS)
