"""The `llmos models` commands: their options; the work is in `commands_models.py` and
`commands_versions.py`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from llmos.command_line import AsJson, ConfigFile, command, configured

app = typer.Typer(
    name="models",
    help="List models; show, promote, roll back, delete and export versions made from them.",
    rich_markup_mode=None,
)


class Format(StrEnum):
    safetensors = "safetensors"
    gguf = "gguf"


Name = Annotated[str, typer.Argument(metavar="NAME", help="A version, as `versions` lists them.")]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Kept with the decision, for later.")
]
Verify = Annotated[bool, typer.Option("--verify", help="Read and check every byte.")]


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    verify: Verify = False,
    remove: Annotated[
        str | None, typer.Option(metavar="NAME", help="Delete this model, or NAME:FORMAT its copy.")
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """List models (here, known and configured); the commands are about versions made from them."""
    if context.invoked_subcommand is None:
        _models(verify, remove, as_json, config)


@command
def _models(verify: bool, remove: str | None, as_json: bool, config: ConfigFile) -> int:
    from llmos.commands_models import list_models, remove_model

    settings = configured(config)
    if remove is not None:
        return remove_model(settings, remove)
    return list_models(settings, is_verifying=verify, as_json=as_json)


@app.command()
@command
def versions(verify: Verify = False, as_json: AsJson = False, config: ConfigFile = None) -> int:
    """List what was trained here; a star marks what serves."""
    from llmos.commands_versions import list_versions, verify_versions

    work = verify_versions if verify else list_versions
    return work(configured(config), as_json=as_json)


@app.command()
@command
def show(name: Name, as_json: AsJson = False, config: ConfigFile = None) -> int:
    """A version: what it is, what it was made from, and what was decided about it."""
    from llmos.commands_versions import show_version

    return show_version(configured(config), name, as_json=as_json)


@app.command()
@command
def promote(
    name: Name,
    slot: Annotated[
        str | None, typer.Option(metavar="NAME", help="What a task model serves under.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Override the gate, but not its safety checks.")
    ] = False,
    reason: Reason = "",
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Have a version serve, if the gate lets it; running agents use it from their next call on."""
    from llmos.commands_versions import promote_version

    settings = configured(config)
    return promote_version(settings, name, slot=slot, force=force, reason=reason, as_json=as_json)


@app.command()
@command
def rollback(
    slot: Annotated[
        str | None, typer.Argument(metavar="SLOT", help="A base, or a task model's slot.")
    ] = None,
    reason: Reason = "",
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Undo the last promotion: what served before serves again."""
    from llmos.commands_versions import rollback_version

    return rollback_version(configured(config), slot, reason=reason, as_json=as_json)


@app.command()
@command
def delete(name: Name, as_json: AsJson = False, config: ConfigFile = None) -> int:
    """Delete a version that nobody needs, and its files."""
    from llmos.commands_versions import delete_version

    return delete_version(configured(config), name, as_json=as_json)


@app.command()
@command
def pin(
    name: Name,
    undo: Annotated[bool, typer.Option("--undo", help="Let it be deleted again.")] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Keep a version from being deleted."""
    from llmos.commands_versions import pin_version

    return pin_version(configured(config), name, is_pinned=not undo, as_json=as_json)


@app.command()
@command
def export(
    name: Name,
    format: Annotated[
        Format, typer.Option("--format", help="A transformers folder, or a GGUF file.")
    ] = Format.safetensors,
    quantize: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="Of a GGUF file: F32, F16, BF16, Q8_0, Q4_0, Q4_1."),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="PATH", help="Where; by default in the home.")
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Write a version merged with its base, for other programs."""
    from llmos.commands_models import parse_format
    from llmos.commands_versions import export_version

    return export_version(
        configured(config),
        name,
        format=format.value,
        quantize=None if quantize is None else parse_format(quantize),
        path=to,
        as_json=as_json,
    )
