"""`llmos finetune`, `eval` and `learn`: their options; the work is in `commands_finetune.py` and
`commands_learn.py`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from llmos.command_line import AsJson, ConfigFile, Offline, command, configured


class Objective(StrEnum):
    instruct = "instruct"
    pretrain = "pretrain"
    classify = "classify"
    tag = "tag"
    prefer = "prefer"
    embed = "embed"


class Method(StrEnum):
    lora = "lora"
    full = "full"
    qlora = "qlora"
    dora = "dora"
    ia3 = "ia3"
    prompt_tuning = "prompt_tuning"
    prompt = "prompt"


Job = Annotated[
    Path | None, typer.Option("--job", metavar="FILE", help="Read fields from this TOML or JSON.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any other field; may be repeated."),
]
Base = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A configured model, a base, or a version to go on from."),
]


@command
def finetune(
    data: Annotated[Path | None, typer.Argument(help="A file of rows.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", metavar="NAME", help="What the version is called.")
    ] = None,
    job: Job = None,
    base: Base = None,
    objective: Annotated[Objective | None, typer.Option(help="What is learned.")] = None,
    method: Annotated[Method | None, typer.Option(help="How much of the model is trained.")] = None,
    epochs: Annotated[float | None, typer.Option(metavar="X", help="Times over the rows.")] = None,
    max_steps: Annotated[int | None, typer.Option(metavar="N", help="Most steps.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", metavar="X", help="At its highest.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Rows of a step.")] = None,
    rank: Annotated[int | None, typer.Option(metavar="N", help="Rank of a LoRA.")] = None,
    eval_data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Held-out rows; else a share of the data.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Same seed, same result.")] = None,
    settings: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished job of this name.")
    ] = False,
    offline: Offline = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Train a version of a model; Ctrl-C keeps the best so far, and the same command goes on."""
    from llmos.commands_finetune import finetune, finetune_call, kept_job, read_job

    chosen = configured(config, offline=offline)
    fields = read_job(
        job,
        settings or [],
        data=_path(data),
        name=name,
        base=base,
        objective=objective and objective.value,
        method=method and method.value,
        epochs=epochs,
        max_steps=max_steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        rank=rank,
        eval_data=_path(eval_data),
        seed=seed,
    )
    if resume:
        fields = kept_job(chosen.home, str(fields.get("name"))) | fields
    return finetune(chosen, finetune_call(fields), as_json=as_json)


@command
def evaluate(
    data: Annotated[Path, typer.Argument(help="A file of rows, none of them trained on.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="A model, a base or a version.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="NAME", help="A version on that model.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Compare with this one too; may be repeated."),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="NAME", help="generate, classify, tag, instruct, ...")
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(metavar="N", help="So many rows, drawn by the seed.")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Write pages with pictures.")] = False,
    settings: Set = None,
    offline: Offline = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Measure a model on rows: loss, accuracy, F1, with intervals; compare it with others."""
    from llmos.commands_finetune import evaluate, evaluate_call, read_job

    fields = read_job(
        None,
        settings or [],
        data=_path(data),
        model=model,
        adapter=adapter,
        against=tuple(against) if against else None,
        objective=objective,
        max_rows=max_rows,
        report=report or None,
    )
    return evaluate(configured(config, offline=offline), evaluate_call(fields), as_json=as_json)


@command
def learn(
    practice: Annotated[
        str | None,
        typer.Argument(help="What the agent learns by: a program, module:function or file.py."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", metavar="NAME", help="How versions are called.")
    ] = None,
    folder: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where the loop keeps everything.")
    ] = Path("llmos-learn"),
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="Read fields from this TOML/JSON.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(metavar="N", help="Most rounds.")] = None,
    minutes: Annotated[float | None, typer.Option(metavar="X", help="Most minutes.")] = None,
    tokens: Annotated[int | None, typer.Option(metavar="N", help="Most tokens.")] = None,
    tasks: Annotated[int | None, typer.Option(metavar="N", help="New tasks a round.")] = None,
    every_s: Annotated[
        float | None, typer.Option("--every", metavar="S", help="Seconds from round to round.")
    ] = None,
    settings: Set = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The model that agents use.")
    ] = None,
    offline: Offline = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Let an agent learn from what it does: collect, filter, train, evaluate, promote.

    The same command with the same folder goes on where it ended.
    """
    from llmos.commands_finetune import read_job
    from llmos.commands_learn import learn

    fields: dict[str, Any] = read_job(
        plan,
        settings or [],
        practice=practice,
        name=name,
        rounds=rounds,
        seconds=None if minutes is None else minutes * 60,
        tokens=tokens,
        tasks=tasks,
        every_s=every_s,
        model=model,
    )
    fields.setdefault("practice", "tool-practice")
    fields.setdefault("name", "tool-agent")
    return learn(configured(config, offline=offline), folder, fields, as_json=as_json)


def add_to(app: typer.Typer) -> None:
    """Make them commands of an app."""
    app.command("finetune")(finetune)
    app.command("eval")(evaluate)
    app.command("learn")(learn)


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
