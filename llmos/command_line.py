"""What every command of `llmos` shares: options, and how errors end it.

Every import that costs more than a few milliseconds is inside the function that needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

if TYPE_CHECKING:
    from llmos.config import Config
    from llmos.syscalls.errors import LlmosError

P = ParamSpec("P")

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Read this file, not llmos.toml.")
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="The default model of this kernel.")
]
Policy = Annotated[
    str | None,
    typer.Option("--policy", metavar="NAME", help="priority, fifo, fair, las, ..."),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Never download: a missing model is an error.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value, for scripts.")]


def command(function: Callable[P, int]) -> Callable[P, None]:
    """Make a function that returns an exit status a command whose errors are one line."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from llmos import exits
        from llmos.syscalls.errors import LlmosError

        try:
            status = function(*args, **kwargs)
            sys.stdout.flush()
        except KeyboardInterrupt:
            status = exits.INTERRUPTED
        except BrokenPipeError:
            status = exits.BROKEN_PIPE
            _abandon_stdout()
        except LlmosError as problem:
            _complain(problem)
            status = exits.exit_status(problem)
        raise typer.Exit(status)

    return run


def configured(file: Path | None, **overrides: Any) -> Config:
    """The settings in force. Raises: ConfigError, for an unknown model naming the known ones."""
    from llmos.config import load_config

    model = overrides.pop("model", None)
    offline = overrides.pop("offline", False) or None
    return load_config(file=file, default_model=model, offline=offline, **overrides)


# --- internals ------------------------------------------------------------------------------------


def _complain(problem: LlmosError) -> None:
    from rich.text import Text

    from llmos.tables import console

    console(is_error=True).print(Text(f"llmos: {problem}", style="red"), soft_wrap=True)


def _abandon_stdout() -> None:
    """Nobody reads any more: let the interpreter's last flush go nowhere instead of failing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
