"""The `llmos data` commands: their options; the work is in `commands_data.py`.

None of them boots a kernel. Those about traces work on the configured home, also beside a kernel
that runs there.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llmos.command_line import AsJson, ConfigFile, command, configured

app = typer.Typer(
    name="data",
    help="Training data: check, describe and divide rows; turn traces of agents into rows.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Objective(StrEnum):
    instruct = "instruct"
    pretrain = "pretrain"
    classify = "classify"
    tag = "tag"
    prefer = "prefer"
    embed = "embed"


class TraceObjective(StrEnum):
    instruct = "instruct"
    prefer = "prefer"


File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="JSONL, JSON, CSV, TSV, Parquet, CoNLL, text, or a folder of text."
    ),
]
For = Annotated[Objective, typer.Option("--objective", "-o", help="What the rows are to teach.")]
GroupField = Annotated[
    str | None,
    typer.Option(metavar="FIELD", help="Rows with the same value here belong together."),
]


@app.command()
@command
def check(
    file: File,
    objective: For,
    test: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows held out, checked against these.")
    ] = None,
    group_field: GroupField = None,
    as_json: AsJson = False,
) -> int:
    """Say what is wrong with rows, each with its line and field; status 1 when anything is."""
    from llmos.commands_data import check_file

    return check_file(file, objective, test=test, group_field=group_field, as_json=as_json)


@app.command()
@command
def stats(
    file: File,
    objective: For,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page there, in Markdown.")
    ] = None,
    group_field: GroupField = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Describe rows: counts, lengths, labels, repetitions, personal data."""
    from llmos.commands_data import describe

    return describe(
        configured(config), file, objective, out=out, group_field=group_field, as_json=as_json
    )


@app.command()
@command
def split(
    file: File,
    objective: For,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where train, dev and test.jsonl go.")
    ],
    eval_share: Annotated[
        float, typer.Option(min=0, max=0.99, metavar="X", help="Share of rows for dev.")
    ] = 0.1,
    test_share: Annotated[
        float, typer.Option(min=0, max=0.99, metavar="X", help="Share of rows for test.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed divides otherwise.")] = 0,
    stratify: Annotated[
        bool, typer.Option("--stratify/--no-stratify", help="Keep each label's share.")
    ] = True,
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="Drop near-duplicates, within and across.")
    ] = False,
    redact: Annotated[bool, typer.Option("--redact", help="Replace personal data.")] = False,
    group_field: GroupField = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Divide rows into train, dev and test; the same rows and seed divide the same."""
    from llmos.commands_data import divide

    return divide(
        configured(config),
        file,
        objective,
        out=out,
        eval_share=eval_share,
        test_share=test_share,
        seed=seed,
        stratify=stratify,
        is_deduping=dedupe,
        is_redacting=redact,
        group_field=group_field,
        as_json=as_json,
    )


@app.command()
@command
def consent(
    namespace: Annotated[
        str | None, typer.Argument(help="Whose traces: a client's name or a namespace.")
    ] = None,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Forbid it again, and delete what was kept.")
    ] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Allow that traces are kept to be learnt from; without a name, list who has."""
    from llmos.commands_data import list_consents, record_consent

    if namespace is None:
        return list_consents(configured(config), as_json=as_json)
    return record_consent(configured(config), namespace, is_granted=not withdraw, as_json=as_json)


@app.command()
@command
def traces(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The JSONL file to write.")],
    namespaces: Annotated[
        list[str] | None,
        typer.Option("--namespace", "-n", metavar="NAME", help="Only this one; may be repeated."),
    ] = None,
    objective: Annotated[
        TraceObjective, typer.Option("--objective", "-o", help="Answers, or pairs of them.")
    ] = TraceObjective.instruct,
    min_reward: Annotated[
        float, typer.Option(metavar="X", help="Leave out what was judged worse, or not at all.")
    ] = 1.0,
    unjudged: Annotated[
        bool, typer.Option("--unjudged", help="Take everything, whatever was said of it.")
    ] = False,
    days: Annotated[
        float | None, typer.Option(min=0, metavar="N", help="Only of the last N days.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Look at the newest N only.")
    ] = None,
    redact: Annotated[
        bool, typer.Option("--redact/--no-redact", help="Replace personal data.")
    ] = True,
    dedupe: Annotated[
        bool, typer.Option("--dedupe/--no-dedupe", help="Leave out repetitions.")
    ] = True,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Write rows made of the traces of those who consented."""
    from llmos.commands_data import write_traces

    return write_traces(
        configured(config),
        out,
        namespaces=namespaces,
        objective=objective.value,
        min_reward=None if unjudged else min_reward,
        days=days,
        limit=limit,
        is_redacting=redact,
        is_deduping=dedupe,
        as_json=as_json,
    )
