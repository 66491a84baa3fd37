"""The options of `llmos classify` and `llmos tag`; the work is in `commands_label.py`."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos.command_line import AsJson, ConfigFile, Offline, command, configured

TaskModel = Annotated[
    str, typer.Argument(metavar="MODEL", help="A task model: a version, or a promoted name.")
]
Texts = Annotated[
    list[str] | None,
    typer.Argument(metavar="TEXT...", help="Texts; without, the lines of standard input."),
]
Task = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which task, where a model has several.")
]


@command
def classify(
    model: TaskModel,
    texts: Texts = None,
    task: Task = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Labels shown of each text.")] = 1,
    offline: Offline = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Label texts by a trained task model."""
    from llmos.commands_label import classify_texts

    settings = configured(config, offline=offline)
    return classify_texts(settings, model, texts or [], task=task, top=top, as_json=as_json)


@command
def tag(
    model: TaskModel,
    texts: Texts = None,
    task: Task = None,
    offline: Offline = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Find entities in texts by a trained task model."""
    from llmos.commands_label import tag_texts

    settings = configured(config, offline=offline)
    return tag_texts(settings, model, texts or [], task=task, as_json=as_json)
