"""Tokens a second of fine-tuning: this trainer against transformers' Trainer with peft.

Two jobs, each at the same settings on both sides: `instruct`, a LoRA adapter of rank 8 on every
linear layer of SmolLM2-135M, on messages of bank customers with the intent as the answer; and
`tag`, the same on MiniLM with a head for entities. The same rows, base weights, precision, threads,
batch size, optimizer, schedule and clipping. A token counts if it is not padding.

The Trainer pads a batch to its longest row and computes logits for every position: that is what a
plain script does. This trainer is measured without packing, which pads too, and with it. With
`--half` this side's frozen weights are in bfloat16 as well, a figure beside the floors.

The sides alternate, and each ratio is of medians over the rounds.
"""

from __future__ import annotations

import argparse
import csv
import gc
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.form import Floor, main_with
from llmos.drivers.rows.kinds import ChatRow, TaggedRow
from llmos.drivers.rows.reading import read_rows
from llmos.drivers.torch_weights import checkpoint, quiet
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.loop import Run
from llmos.drivers.training.objectives import Rows, builder
from llmos.drivers.training.task import Item
from llmos.memory.model_store import ModelStore
from llmos.syscalls.content import assistant, system, user

DATA = Path(__file__).parent / "data"
RANK = 8
SEED = 0
IGNORED = -100  # the label that transformers leaves out of a loss
SYSTEM = (
    "You sort the messages that customers send to a bank. Answer with the name of the intent "
    "of the message and nothing else."
)


class Pace(NamedTuple):
    """One side over its measured steps."""

    tokens: int
    padding: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


Side = Callable[[], Pace]


class Shape(NamedTuple):
    """What is measured, and at which size."""

    batch_size: int
    steps: int  # measured ones, after one that is not
    learning_rate: float


INSTRUCT = Shape(batch_size=8, steps=4, learning_rate=2e-4)
TAG = Shape(batch_size=32, steps=8, learning_rate=1e-3)


# --- this trainer ---------------------------------------------------------------------------------


def own_side(job: TrainJob, rows: Sequence[Any], steps: int) -> Side:
    """Steps of a run as a job's worker takes them; each round goes on where the one before was."""
    built = builder(job)(job, "cpu", Rows(rows, (), ()))
    run = Run(built, built.task.encode(rows).items, job, device="cpu")
    run.take_step()

    def measure() -> Pace:
        started = time.perf_counter()
        taken = [run.take_step() for _ in range(steps)]
        seconds = time.perf_counter() - started
        return Pace(
            sum(step.tokens for step in taken), sum(step.padded_tokens for step in taken), seconds
        )

    return measure


# --- transformers' Trainer ------------------------------------------------------------------------


class Counting:
    """A padding collator that notes what it made."""

    def __init__(self, padding: int) -> None:
        self._padding = padding
        self.batches: list[tuple[int, int]] = []  # tokens, padding

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        tokens = sum(len(row["input_ids"]) for row in rows)
        self.batches.append((tokens, width * len(rows) - tokens))
        fill = {"input_ids": self._padding, "labels": IGNORED, "attention_mask": 0}
        return {
            name: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])
            for name, value in fill.items()
        }


def trainer_side(
    model: Any, rows: Sequence[dict[str, list[int]]], shape: Shape, *, padding: int
) -> Side:
    """Steps of transformers' Trainer on a peft model; each round is a run of its own."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    def measure() -> Pace:
        collate, clock = Counting(padding), Clock()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            trainer = Trainer(
                model=model,
                args=TrainingArguments(
                    output_dir=folder,
                    use_cpu=True,
                    per_device_train_batch_size=shape.batch_size,
                    max_steps=shape.steps + 1,
                    learning_rate=shape.learning_rate,
                    warmup_steps=1,
                    max_grad_norm=1.0,
                    seed=SEED,
                    save_strategy="no",
                    logging_strategy="no",
                    report_to=[],
                    disable_tqdm=True,
                    dataloader_pin_memory=False,
                    remove_unused_columns=False,
                ),
                train_dataset=rows,
                data_collator=collate,
                callbacks=[clock],
            )
            with redirect_stdout(sys.stderr):
                trainer.train()
        measured = collate.batches[1 : shape.steps + 1]
        return Pace(
            sum(tokens for tokens, _ in measured),
            sum(padded for _, padded in measured),
            clock.ends[-1] - clock.ends[0],
        )

    return measure


def adapted(model: Any, task_type: str) -> Any:
    """The model with a LoRA adapter, as a plain script makes it."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(SEED)
    linear: Any = {
        "CAUSAL_LM": "all-linear",
        "TOKEN_CLS": ["query", "key", "value", "dense"],  # all but the new head
    }
    settings = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=linear[task_type], task_type=task_type
    )
    return get_peft_model(model, settings)


# --- the two jobs ---------------------------------------------------------------------------------


def chat_rows(count: int) -> list[ChatRow]:
    """Messages of bank customers and their intents."""
    with (DATA / "banking77_train.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    chosen = random.Random(SEED).sample(read, count)
    return [
        ChatRow((system(SYSTEM), user(row["text"]), assistant(row["category"])), f"row {number}")
        for number, row in enumerate(chosen)
    ]


def instruct_sides(shape: Shape, *, threads: int, half: bool) -> dict[str, Side]:
    from transformers import AutoModelForCausalLM

    path = ModelStore().path("smollm2")
    rows = chat_rows(800)
    job = TrainJob(
        base=str(path),
        output="",
        method="lora",
        rank=RANK,
        batch_size=shape.batch_size,
        learning_rate=shape.learning_rate,
        seed=SEED,
        epochs=10,
        threads=threads,
    )
    packed = job.model_copy(update={"packing": True})
    sides = {
        "instruct_padded": own_side(job.model_copy(update={"packing": False}), rows, shape.steps),
        "instruct_packed": own_side(packed, rows, shape.steps),
    }
    if half:
        in_half = packed.model_copy(update={"precision": "bfloat16"})
        sides["instruct_half"] = own_side(in_half, rows, shape.steps)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(checkpoint(path), local_files_only=True)
    items = builder(job)(job, "cpu", Rows(rows, (), ())).task.encode(rows).items
    sides["instruct_trainer"] = trainer_side(
        adapted(model.float(), "CAUSAL_LM"), [_answer(item) for item in items], shape, padding=0
    )
    return sides


def _answer(item: Item) -> dict[str, list[int]]:
    tokens = list(item.tokens)
    return {
        "input_ids": tokens,
        "attention_mask": [1] * len(tokens),
        "labels": [IGNORED] * item.payload + tokens[item.payload :],
    }


def tag_sides(shape: Shape, *, threads: int) -> dict[str, Side]:
    from transformers import AutoModelForTokenClassification

    from llmos.drivers.training.encoder import encoder_folder

    rows = [
        row
        for row in read_rows(DATA / "wnut17_train.conll", "tag")[:1500]
        if isinstance(row, TaggedRow)
    ]
    job = TrainJob(
        objective="tag",
        base=str(ModelStore().path("minilm")),
        output="",
        method="lora",
        rank=RANK,
        batch_size=shape.batch_size,
        learning_rate=shape.learning_rate,
        seed=SEED,
        epochs=20,
        max_length_tokens=128,
        threads=threads,
    )
    sides = {"tag_own": own_side(job, rows, shape.steps)}
    folder = encoder_folder(job)
    labels = sorted({tag for row in rows for tag in row.tags})
    with quiet():
        model = AutoModelForTokenClassification.from_pretrained(
            folder, num_labels=len(labels), local_files_only=True
        )
    sides["tag_trainer"] = trainer_side(
        adapted(model.float(), "TOKEN_CLS"), list(_tagged(folder, rows, labels)), shape, padding=0
    )
    return sides


def _tagged(
    folder: Path, rows: Sequence[TaggedRow], labels: Sequence[str]
) -> Iterator[dict[str, list[int]]]:
    """Rows as a plain script reads them: each word's first piece has its label."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for row in rows:
        read = tokenizer(
            list(row.tokens), is_split_into_words=True, truncation=True, max_length=128
        )
        pairs = itertools.pairwise([None, *read.word_ids()])
        found = [
            IGNORED if word is None or word == before else labels.index(row.tags[word])
            for before, word in pairs
        ]
        yield {
            "input_ids": read["input_ids"],
            "attention_mask": read["attention_mask"],
            "labels": found,
        }


# --- measuring ------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    threads = options.threads or len(os.sched_getaffinity(0))
    rounds = 1 if options.quick else options.rounds
    figures: dict[str, Any] = {"rounds": rounds, "threads": threads}
    for name in ("instruct_ratio", "instruct_packed_ratio", "tag_ratio"):
        figures[name] = None
    torch.set_num_threads(threads)
    if options.only in (None, "instruct"):
        shape = INSTRUCT._replace(steps=2) if options.quick else INSTRUCT
        paces = alternate(instruct_sides(shape, threads=threads, half=options.half), rounds)
        figures |= told(paces)
        figures["instruct_ratio"] = ratio(paces, "instruct_padded", "instruct_trainer")
        figures["instruct_packed_ratio"] = ratio(paces, "instruct_packed", "instruct_trainer")
        if options.half:
            figures["instruct_half_ratio"] = ratio(paces, "instruct_half", "instruct_trainer")
        gc.collect()
    if options.only in (None, "tag"):
        shape = TAG._replace(steps=3) if options.quick else TAG
        paces = alternate(tag_sides(shape, threads=threads), rounds)
        figures |= told(paces)
        figures["tag_ratio"] = ratio(paces, "tag_own", "tag_trainer")
    return figures


def alternate(sides: dict[str, Side], rounds: int) -> dict[str, list[Pace]]:
    """Every side once a round, in turn."""
    found: dict[str, list[Pace]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(side())
    return found


def told(paces: dict[str, list[Pace]]) -> dict[str, Any]:
    """Each side's tokens per second, and how much of what it computed was padding."""
    figures: dict[str, Any] = {}
    for name, found in paces.items():
        figures[f"{name}_tokens_per_s"] = round(_median(found), 1)
        padding = sum(pace.padding for pace in found)
        computed = padding + sum(pace.tokens for pace in found)
        figures[f"{name}_padding_share"] = round(padding / computed, 3)
    return figures


def ratio(paces: dict[str, list[Pace]], own: str, other: str) -> float:
    return round(_median(paces[own]) / _median(paces[other]), 2)


def _median(found: Sequence[Pace]) -> float:
    return statistics.median(pace.tokens_per_s for pace in found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch; by default all processors")
    parser.add_argument("--only", choices=["instruct", "tag"])
    parser.add_argument("--half", action="store_true", help="this side in bfloat16 too")
    main_with(
        parser,
        "train_speed",
        measure,
        [
            Floor("instruct_ratio", ">=", 1.0),
            Floor("instruct_packed_ratio", ">=", 1.3),
            Floor("tag_ratio", ">=", 1.0),
        ],
    )
