"""Names in noisy text: an encoder learns to tag them while the system runs, and tags at once.

A short course on WNUT17, a few hundred sentences: not enough to be good at it. `benchmarks/ner.py`
trains to the end.
Run: .venv/bin/python examples/ner.py [SENTENCE...]; in the environment, STEPS of training.
"""

import asyncio
import sys
import tempfile
from os import environ
from pathlib import Path

import llmos

DATA = Path(__file__).parent.parent / "benchmarks" / "data" / "wnut17_train.conll"
STEPS = int(environ.get("STEPS", "30"))
SENTENCES = sys.argv[1:] or [
    "Just landed in New York with Justin Bieber",
    "we watched Toy Story 3 at the Empire State Building",
]


async def main() -> None:
    # A home of its own, so that it can be run again: the name of a version is given once.
    with tempfile.TemporaryDirectory(prefix="llmos-") as home:
        async with llmos.boot(home=Path(home)) as kernel:
            os = kernel.os
            job = await os.finetune(
                str(DATA),
                "names",
                objective="tag",
                method="full",
                freeze=("embeddings",),
                learning_rate=5e-4,
                batch_size=32,
                max_steps=STEPS,
                max_length_tokens=96,
            )
            trained = await os.result(job)
            metrics = trained["version"]["metrics"]
            print(f"entity F1 on held-out sentences: {metrics['eval_f1']:.2f}")
            for text in (await os.tag(SENTENCES, "names")).texts:
                print(text.text)
                for entity in text.entities:
                    print(f"  {entity.text}: {entity.label} ({entity.score:.2f})")


asyncio.run(main())
