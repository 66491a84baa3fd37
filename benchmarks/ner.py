"""Named entities in noisy text: WNUT17, entity F1 of the small encoder on held-out rows.

The training file is divided once: rows to train on, rows to choose settings by (`--dev` judges by
them), and test rows, which chose nothing; for the test, the rows that settings were chosen by are
trained on too. Full training and LoRA, three seeds each: medians, the spread, and precision, recall
and F1 of each entity type over the seeds' mean.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.form import Floor, main_with
from benchmarks.task_runs import DATA, Kept, parser, train
from llmos.drivers.metrics.entities import score_entities
from llmos.drivers.rows.kinds import TaggedRow
from llmos.drivers.rows.reading import read_rows
from llmos.drivers.rows.splits import Split, split

SEEDS = (0, 1, 2)
SHARED: Mapping[str, Any] = {
    "objective": "tag",
    "batch_size": 32,
    "max_length_tokens": 128,
    "dropout": 0.1,
    "weight_decay": 0.01,
    "warmup_share": 0.1,
}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "full": {
        "method": "full",
        "epochs": 6.0,
        "learning_rate": 4e-4,
        "layer_decay": 0.9,
        "freeze": ("embeddings",),
    },
    "lora": {"method": "lora", "epochs": 8.0, "learning_rate": 1e-3, "rank": 16},
}


def rows() -> Split[Any]:
    """The rows to train on, to choose settings by (`dev`) and to judge by (`test`)."""
    found = read_rows(DATA / "wnut17_train.conll", "tag", name="wnut17_train.conll")
    return split(found, eval_share=0.1, test_share=0.15, seed=0, stratify=True)


def run(
    method: str, seed: int, chosen: Sequence[Any], judged: Sequence[Any], state: Path | None
) -> dict[str, Any]:
    """One run: entity F1 and the table of entity types on rows that were not trained on."""
    trained = train(chosen, state=state, **SHARED, **METHODS[method], seed=seed)
    measured = trained.score(judged)
    said: list[Any] = measured.predictions
    scores = score_entities([one["tags"] for one in said], [one["predicted"] for one in said])
    return {
        "f1": scores.f1,
        "precision": scores.precision,
        "recall": scores.recall,
        "steps": trained.steps,
        "train_s": round(trained.seconds, 1),
        "entities": {
            one.entity: {
                "precision": one.precision,
                "recall": one.recall,
                "f1": one.f1,
                "rows": one.real,
            }
            for one in scores.entities
        },
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    kept = Kept(options.keep)
    divided = rows()
    judged: list[TaggedRow] = divided.dev if options.dev else divided.test
    chosen = list(divided.train if options.dev else (*divided.train, *divided.dev))
    chosen = chosen[:120] if options.quick else chosen
    seeds = SEEDS[:1] if options.quick else SEEDS
    figures: dict[str, Any] = {"train_rows": len(chosen), "test_rows": len(judged)}
    side = "dev" if options.dev else "test"
    for method in METHODS:
        found: list[dict[str, Any]] = []
        for seed in seeds:
            part = f"{side}-{method}-{seed}"
            once = partial(run, method, seed, chosen, judged, kept.state(part))
            found.append(kept.get(part, once))
        f1 = [one["f1"] for one in found]
        figures |= {
            f"{method}_f1": round(statistics.median(f1), 4),
            f"{method}_f1_lowest": round(min(f1), 4),
            f"{method}_f1_highest": round(max(f1), 4),
            f"{method}_train_s": statistics.median(one["train_s"] for one in found),
            f"{method}_entities": entity_table([one["entities"] for one in found]),
        }
    figures["lora_below_full"] = round(figures["full_f1"] - figures["lora_f1"], 4)
    return figures


def entity_table(tables: Sequence[Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """The mean over seeds of each entity type's figures."""
    kinds = sorted({kind for table in tables for kind in table})
    return [
        {
            "entity": kind,
            **{
                name: round(
                    statistics.fmean(table[kind][name] for table in tables if kind in table), 3
                )
                for name in ("precision", "recall", "f1", "rows")
            },
        }
        for kind in kinds
    ]


def options() -> argparse.ArgumentParser:
    found = parser(__doc__)
    found.add_argument("--dev", action="store_true", help="judge by the rows for choosing settings")
    return found


FLOORS = (Floor("full_f1", ">=", 0.55), Floor("lora_below_full", "<=", 0.05))

if __name__ == "__main__":
    main_with(options(), "ner", measure, FLOORS)
