"""What a bank's customer wants: an encoder learns 77 intents from ten examples of each.

A short course; then the same system answers by the new model.
Run: .venv/bin/python examples/intents.py [QUESTION...]; in the environment, EPOCHS of training.
"""

import asyncio
import csv
import sys
import tempfile
from collections import Counter
from os import environ
from pathlib import Path

import llmos

DATA = Path(__file__).parent.parent / "benchmarks" / "data" / "banking77_train.csv"
EPOCHS = float(environ.get("EPOCHS", "3"))
QUESTIONS = sys.argv[1:] or ["My card was swallowed by the machine!", "how do i get a refund"]
A_CLASS = 10


def examples() -> list[dict[str, str]]:
    """The first ten rows of each intent."""
    seen: Counter[str] = Counter()
    rows: list[dict[str, str]] = []
    with DATA.open(newline="") as file:
        for row in csv.DictReader(file):
            seen[row["category"]] += 1
            if seen[row["category"]] <= A_CLASS:
                rows.append({"text": row["text"], "label": row["category"]})
    return rows


async def main() -> None:
    # A home of its own, so that it can be run again: the name of a version is given once.
    with tempfile.TemporaryDirectory(prefix="llmos-") as home:
        async with llmos.boot(home=Path(home)) as kernel:
            os = kernel.os
            job = await os.finetune(
                examples(),
                "intents",
                objective="classify",
                method="full",
                freeze=("embeddings",),
                learning_rate=3e-4,
                batch_size=32,
                epochs=EPOCHS,
                max_length_tokens=64,
            )
            trained = await os.result(job)
            metrics = trained["version"]["metrics"]
            print(f"accuracy on held-out questions: {metrics['eval_accuracy']:.2f}")
            answered = await os.classify(QUESTIONS, "intents", top_k=3)
            for question, labels in zip(QUESTIONS, answered.labels, strict=True):
                print(question)
                for one in labels:
                    print(f"  {one.probability:.2f} {one.label}")


asyncio.run(main())
