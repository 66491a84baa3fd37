"""`llmos search`: its options; the work is in `commands_search.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos.command_line import AsJson, ConfigFile, Offline, command, configured


@command
def search(
    data: Annotated[Path | None, typer.Argument(help="A file of rows.")] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", metavar="NAME", help="Of the search; trials are NAME-N."),
    ] = None,
    job: Annotated[
        Path | None,
        typer.Option("--job", metavar="FILE", help="Read fields from this TOML or JSON."),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUES",
            help="rank=2..16, learning_rate=1e-5..1e-2:log or method=lora|dora; may be repeated.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of all trials."),
    ] = None,
    trials: Annotated[int, typer.Option(metavar="N", help="How many, with earlier ones.")] = 20,
    parallel: Annotated[int, typer.Option(metavar="N", help="At a time.")] = 1,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="What is best; else the objective's own.")
    ] = None,
    prune: Annotated[bool, typer.Option(help="Give up trials below the median.")] = True,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the draws.")] = 0,
    offline: Offline = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Search for the best settings of a finetune; Ctrl-C stops, and the same command goes on."""
    from llmos.commands_finetune import finetune_call, read_job
    from llmos.commands_search import search, search_call

    fields = read_job(
        job, settings or [], data=None if data is None else str(data.resolve()), name=name
    )
    call = search_call(
        finetune_call(fields),
        vary or [],
        trials=trials,
        parallel=parallel,
        metric=metric,
        is_pruned=prune,
        seed=seed,
    )
    return search(configured(config, offline=offline), call, as_json=as_json)
