"""Intents of bank customers: Banking77, what each way of using the small models gets right.

Held-out rows judge, which no setting below was chosen by; the rest is there to learn from, whole
(with the rows that settings were chosen by, which `--dev` judges by) or ten rows a class. From
nothing to learn from, to everything:

- zero-shot: the nearest of the classes' names, and a language model that is asked;
- few-shot, ten a class: the nearest example, and a language model that is shown the nearest ones;
- logistic regression on the frozen encoder's vectors, ten a class and all;
- trained: objective `classify`, ten a class (three draws and seeds) and all. With ten a class, each
  class's name is one more row to learn from.

The language model answers only when `--prompted N` says on how many of the test rows: it takes
seconds a row.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import llmos
from benchmarks.form import Floor, main_with
from benchmarks.task_runs import DATA, Kept, encoder_folder, parser, train
from llmos.drivers.contract import ModelSpec
from llmos.drivers.embedding import TorchEmbedding
from llmos.drivers.rows.kinds import LabelledRow
from llmos.drivers.rows.reading import read_rows
from llmos.drivers.rows.splits import Split, split

A_CLASS = 10
SHOTS = 8  # examples that the language model sees with a text
DRAWS = (0, 1, 2)
SHARED: Mapping[str, Any] = {
    "objective": "classify",
    "method": "full",
    "max_length_tokens": 96,
    "dropout": 0.1,
    "weight_decay": 0.01,
    "warmup_share": 0.1,
    "freeze": ("embeddings",),
}
FEW: Mapping[str, Any] = {
    "epochs": 10.0,
    "learning_rate": 3e-4,
    "layer_decay": 0.9,
    "batch_size": 64,
    "label_smoothing": 0.0,
    "token_dropout": 0.2,
    "contrast": 1.0,
    "average": 0.5,
}
ALL: Mapping[str, Any] = {
    "epochs": 5.0,
    "learning_rate": 4e-4,
    "layer_decay": 0.9,
    "batch_size": 64,
    "token_dropout": 0.1,
    "contrast": 1.0,
    "average": 0.3,
}


def rows() -> Split[Any]:
    """The rows to learn from, to choose settings by (`dev`) and to judge by (`test`)."""
    found = read_rows(DATA / "banking77_train.csv", "classify", name="banking77_train.csv")
    return split(found, eval_share=0.05, test_share=0.2, seed=0, stratify=True)


def a_few(chosen: Sequence[LabelledRow], *, draw: int) -> list[LabelledRow]:
    """So many rows of each class, drawn."""
    by_label: dict[str, list[LabelledRow]] = defaultdict(list)
    for row in chosen:
        by_label[row.label].append(row)
    pick = random.Random(draw)
    return [row for label in sorted(by_label) for row in pick.sample(by_label[label], A_CLASS)]


def names_of(chosen: Sequence[LabelledRow]) -> list[LabelledRow]:
    """The classes' names as texts of their classes."""
    labels = sorted({row.label for row in chosen})
    return [LabelledRow(label.replace("_", " "), label, f"label {label}") for label in labels]


# --- without training -----------------------------------------------------------------------------


def frozen(
    divided: Split[Any], whole: Sequence[LabelledRow], judged: Sequence[LabelledRow]
) -> dict[str, float]:
    """Accuracies of what needs no more than the frozen encoder's vectors."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    model = TorchEmbedding(ModelSpec("minilm", Path(encoder_folder())))
    texts = [row.text for row in divided.train]
    learn = np.array(model.embed(texts))
    ask = np.array(model.embed([row.text for row in judged]))
    truth = np.array([row.label for row in judged])
    names = sorted({row.label for row in divided.train})
    named = np.array(model.embed([name.replace("_", " ") for name in names]))
    places = {row.origin: place for place, row in enumerate(divided.train)}
    labels = np.array([row.label for row in divided.train])
    found = {
        "zero_shot_cosine": float((np.array(names)[(ask @ named.T).argmax(1)] == truth).mean())
    }
    nearest: list[float] = []
    regression: list[float] = []
    regression_named: list[float] = []
    for draw in DRAWS:
        few = [places[row.origin] for row in a_few(divided.train, draw=draw)]
        nearest.append(float((labels[few][(ask @ learn[few].T).argmax(1)] == truth).mean()))
        fitted = LogisticRegression(C=10.0, max_iter=1000).fit(learn[few], labels[few])
        regression.append(float(fitted.score(ask, truth)))
        fitted.fit(np.concatenate([learn[few], named]), [*labels[few], *names])
        regression_named.append(float(fitted.score(ask, truth)))
    more = np.array(model.embed([row.text for row in whole]))
    fitted = LogisticRegression(C=10.0, max_iter=1000).fit(more, [row.label for row in whole])
    return {
        **found,
        "few_shot_nearest": statistics.median(nearest),
        "regression_few": statistics.median(regression),
        "regression_few_and_names": statistics.median(regression_named),
        "regression_all": float(fitted.score(ask, truth)),
    }


async def prompted(few: Sequence[LabelledRow], asked: Sequence[LabelledRow]) -> dict[str, float]:
    """Accuracies of the language model by the method `prompt`, without and with examples."""
    rows = [{"text": row.text, "label": row.label} for row in few]
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as home:
        async with llmos.boot(home=Path(home)) as kernel:
            for name, shots in (("zero_shot_prompt", 0), ("few_shot_prompt", SHOTS)):
                job = await kernel.os.finetune(
                    rows, name.replace("_", "-"), objective="classify", method="prompt", shots=shots
                )
                await kernel.os.result(job)
                said = await kernel.os.classify(
                    [row.text for row in asked], name.replace("_", "-"), top_k=1
                )
                right = [
                    labels[0].label == row.label
                    for labels, row in zip(said.labels, asked, strict=True)
                ]
                found[name] = statistics.fmean(right)
    return found


# --- trained --------------------------------------------------------------------------------------


def trained(
    chosen: Sequence[LabelledRow], judged: Sequence[LabelledRow], kept: Kept, part: str, **how: Any
) -> dict[str, Any]:
    """The figures of one run, kept or measured."""

    def run() -> dict[str, Any]:
        done = train(chosen, state=kept.state(part), **SHARED, **how)
        metrics = done.score(judged).metrics
        return {
            "accuracy": metrics["accuracy"],
            "macro_f1": metrics["macro_f1"],
            "steps": done.steps,
            "train_s": round(done.seconds, 1),
        }

    return kept.get(part, run)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    kept = Kept(options.keep)
    divided = rows()
    side = "dev" if options.dev else "test"
    judged: list[LabelledRow] = divided.dev if options.dev else divided.test
    draws = DRAWS[:1] if options.quick or options.dev else DRAWS
    few_how = {**FEW, "max_steps": 4} if options.quick else FEW
    all_how = {**ALL, "max_steps": 4} if options.quick else ALL
    all_rows = list(divided.train if options.dev else (*divided.train, *divided.dev))
    without = kept.get(f"{side}-frozen", partial(frozen, divided, all_rows, judged))

    def few_of(draw: int) -> dict[str, Any]:
        chosen = a_few(divided.train, draw=draw)
        chosen += names_of(chosen)
        return trained(chosen, judged, kept, f"{side}-few-{draw}", seed=draw, **few_how)

    few = [few_of(draws[0])]
    whole = trained(all_rows, judged, kept, f"{side}-all", seed=0, **all_how)
    few += [few_of(draw) for draw in draws[1:]]
    figures: dict[str, Any] = {
        "classes": len({row.label for row in divided.train}),
        "train_rows": len(all_rows),
        "test_rows": len(judged),
        **{name: round(value, 4) for name, value in without.items() if name != "seconds"},
        "trained_few": round(statistics.median(one["accuracy"] for one in few), 4),
        "trained_few_lowest": round(min(one["accuracy"] for one in few), 4),
        "trained_few_train_s": statistics.median(one["train_s"] for one in few),
    }
    if options.prompted:
        asked = random.Random(0).sample(judged, options.prompted)
        shown = a_few(divided.train, draw=0)
        part = f"{side}-prompted-{options.prompted}"
        by_model = kept.get(part, lambda: asyncio.run(prompted(shown, asked)))
        figures |= {
            "prompted_rows": len(asked),
            "zero_shot_prompt": round(by_model["zero_shot_prompt"], 4),
            "few_shot_prompt": round(by_model["few_shot_prompt"], 4),
        }
    figures |= {
        "trained_all": round(whole["accuracy"], 4),
        "trained_all_macro_f1": round(whole["macro_f1"], 4),
        "trained_all_train_s": whole["train_s"],
    }
    figures["few_over_regression"] = round(figures["trained_few"] - figures["regression_few"], 4)
    figures["all_over_regression"] = round(figures["trained_all"] - figures["regression_all"], 4)
    return figures


def options() -> argparse.ArgumentParser:
    found = parser(__doc__)
    found.add_argument(
        "--prompted", type=int, default=0, metavar="N", help="ask a language model N test rows"
    )
    found.add_argument("--dev", action="store_true", help="judge by the rows for choosing settings")
    return found


FLOORS = (
    Floor("trained_few", ">=", 0.86),
    Floor("trained_all", ">=", 0.93),
    Floor("few_over_regression", ">", 0.0),
    Floor("all_over_regression", ">", 0.0),
)

if __name__ == "__main__":
    main_with(options(), "intent", measure, FLOORS)
