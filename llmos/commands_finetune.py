"""`llmos finetune` and `llmos eval`: train a version while a person watches, and measure one."""

from __future__ import annotations

import asyncio
import json
import signal
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.text import Text

from llmos import exits
from llmos.booting import boot
from llmos.exits import UsageError
from llmos.logs import log_to_file
from llmos.pulling import bring_models
from llmos.syscalls.calls import Evaluate, Finetune
from llmos.syscalls.errors import SyscallError, invalid
from llmos.syscalls.results import Evaluated, Exited
from llmos.tables import console, text_table
from llmos.terminal import signals
from llmos.training_view import EventLines, TrainingView

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llmos.config import Config
    from llmos.kernel.kernel import Kernel
    from llmos.syscalls.values import JsonObject

_CANCEL_S = 20.0  # for a step, a checkpoint and the adapter's files
_PATHS = ("eval_data", "test_data")


def finetune(config: Config, call: Finetune, *, as_json: bool) -> int:
    """Train, showing progress on standard error and the version on standard output.

    With `as_json` the events are lines of JSON on standard output, and the result the last one.
    Ctrl-C ends the job with what was best kept; a second one at once.
    """
    log_to_file(config.home)
    bring_models(config, console(is_error=True))
    return asyncio.run(_finetune(config, call, as_json=as_json))


def evaluate(config: Config, call: Evaluate, *, as_json: bool) -> int:
    """Measure, and show the figures with their intervals."""
    log_to_file(config.home)
    bring_models(config, console(is_error=True))

    async def measure() -> Evaluated:
        async with boot(config) as kernel:
            return await kernel.os.call(call)

    found = asyncio.run(measure())
    if as_json:
        print(found.model_dump_json())
    else:
        screen = console()
        for part in evaluated_tables(found):
            screen.print(part, soft_wrap=isinstance(part, Text))
    return exits.OK


def evaluated_tables(found: Evaluated) -> list[RenderableType]:
    """The figures, the models that were compared, and where the report is."""
    rows = [_figure_row(name, value, found.intervals) for name, value in _figures(found).items()]
    parts: list[RenderableType] = [
        text_table(("metric", found.model or "value", "95% interval"), rows)
    ]
    for other in found.compared:
        rows = [
            (name, f"{change.value:+.4g}", f"{change.low:+.4g} to {change.high:+.4g}")
            for name, change in other.changes.items()
        ]
        parts += [Text(), text_table(("metric", f"over {other.model}", "95% interval"), rows)]
    parts.append(Text(f"{found.rows} rows, {found.tokens} tokens", style="dim"))
    if found.report is not None:
        parts.append(Text(f"report: {found.report}"))
    return parts


# --- what is asked --------------------------------------------------------------------------------


def read_job(file: Path | None, settings: Sequence[str], **flags: Any) -> JsonObject:
    """The fields of a job: of a TOML or JSON file, over them FIELD=VALUE words, over them flags.

    A path in the file is relative to it. Flags that are None were not given.
    Raises: UsageError.
    """
    fields: JsonObject = {} if file is None else _file_fields(file)
    for word in settings:
        name, is_pair, value = word.partition("=")
        if not is_pair:
            raise UsageError(f"--set {word}: write FIELD=VALUE")
        fields[name] = _value(value)
    return fields | {name: value for name, value in flags.items() if value is not None}


def finetune_call(fields: JsonObject) -> Finetune:
    """Raises: SyscallError("invalid"), for an unknown field naming the nearest known one."""
    if "name" not in fields:
        raise UsageError("a job needs a name for what it trains: --name NAME")
    try:
        return Finetune.model_validate(fields, strict=False)
    except ValidationError as problem:
        raise invalid(problem) from problem


def evaluate_call(fields: JsonObject) -> Evaluate:
    """Raises: SyscallError("invalid")."""
    try:
        return Evaluate.model_validate(fields, strict=False)
    except ValidationError as problem:
        raise invalid(problem) from problem


def kept_job(home: Path, name: str) -> JsonObject:
    """The fields of a job that was not finished, from what it left. Raises: UsageError."""
    folder = home / "jobs" / name
    try:
        asked = json.loads((folder / "identity.json").read_text(encoding="utf-8"))
        data = json.loads((folder / "job.json").read_text(encoding="utf-8"))["data"]
    except FileNotFoundError:
        raise UsageError(f"--resume: there is no unfinished job {name} in {home}") from None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise UsageError(f"--resume: what {folder} holds cannot be read: {problem}") from problem
    fields = {key: value for key, value in asked.items() if key in Finetune.model_fields}
    return {**fields, "name": name, "data": data}


# --- internals ------------------------------------------------------------------------------------


async def _finetune(config: Config, call: Finetune, *, as_json: bool) -> int:
    errors = console(is_error=True)
    async with boot(config) as kernel:
        pid = (await kernel.os.call(call)).pid
        with TrainingView(errors) as view:
            is_cancelled, exited = await follow(
                kernel, pid, (lambda event: print(json.dumps(event))) if as_json else view.show
            )
    if is_cancelled:
        errors.print(Text(f"the same command goes on: --resume --name {call.name}", style="dim"))
        return exits.INTERRUPTED
    value: Any = exited.unwrap()
    if as_json:
        print(json.dumps({"event": "trained", **value}))
    else:
        version = value["version"]
        metrics = ", ".join(f"{key} {number:.4g}" for key, number in version["metrics"].items())
        print(f"{version['name']} ({version['kind']} on {version['base']}): {metrics}")
    return exits.OK


async def follow(
    kernel: Kernel, pid: int, show: Callable[[JsonObject], object]
) -> tuple[bool, Exited]:
    """Show a process's events until it ends; whether a person cancelled it, and how it ended."""
    asked = 0
    signalling: set[asyncio.Task[None]] = set()

    def interrupt() -> None:
        nonlocal asked
        asked += 1
        name = "TERM" if asked == 1 else "KILL"
        task = asyncio.create_task(kernel.os.signal(pid, name, deadline_s=_CANCEL_S))
        signalling.add(task)

    async def read() -> None:
        lines = EventLines()
        async for data in kernel.output(pid):
            for event in lines.feed(data):
                show(event)

    with signals({signal.SIGINT: interrupt, signal.SIGTERM: interrupt}):
        reading = asyncio.create_task(read())
        exited = await kernel.os.wait(pid)
        await reading
    for task in signalling:
        try:
            await task
        except SyscallError:  # the process ended before the signal came
            continue
    return bool(asked) and exited.status != "ok", exited


def _file_fields(file: Path) -> JsonObject:
    try:
        text = file.read_text(encoding="utf-8")
        fields: JsonObject = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except OSError as problem:
        raise UsageError(f"{file}: {problem.strerror}") from problem
    except ValueError as problem:
        raise UsageError(f"{file}: {problem}") from problem
    if not isinstance(fields, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"{file}: it holds no fields of a job")
    for name in ("data", *_PATHS):
        if isinstance(fields.get(name), str):
            fields[name] = str((file.parent / fields[name]).resolve())
    return fields


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def _figures(found: Evaluated) -> dict[str, float]:
    first = {"loss": found.loss, "perplexity": found.perplexity}
    return {name: value for name, value in first.items() if value is not None} | found.metrics


def _figure_row(
    name: str, value: float, intervals: dict[str, tuple[float, float]]
) -> tuple[str, str, str]:
    bounds = intervals.get(name)
    return name, f"{value:.4g}", "" if bounds is None else f"{bounds[0]:.4g} to {bounds[1]:.4g}"
