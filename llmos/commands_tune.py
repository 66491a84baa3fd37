"""`llmos tune`: find how a model runs fastest on this machine, show the table, keep the choice."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

from llmos import exits
from llmos.commands_models import parse_format
from llmos.drivers.tuning import BATCHES
from llmos.exits import UsageError
from llmos.pulling import open_store
from llmos.tables import console, rate, seconds, size, text_table

if TYPE_CHECKING:
    from rich.console import Console

    from llmos.config import Config
    from llmos.drivers.llama_requantise import Format
    from llmos.memory.tuned import Choice, Row, Tuned
    from llmos.tuning import Tell

_BATCH_HEADS = tuple(f"x{batch}" for batch in BATCHES)
_BUSY_LOAD_SHARE = 0.5  # of the cores, before we start


class Subject(NamedTuple):
    """What is tuned."""

    name: str
    path: Path


def tune_model(
    config: Config,
    model: str | None,
    *,
    formats: str | None,
    is_quick: bool,
    is_forced: bool,
    most_loss: float,
    as_json: bool,
) -> int:
    """Tune a model unless that was done, and show what was found."""
    from llmos.memory.tuned import recall

    subject = find_subject(config, model)
    wanted = None if formats is None else [parse_format(word) for word in formats.split(",")]
    kept = recall(config.tuned_folder, subject.path)
    is_due = kept is None or is_forced or wanted is not None or (kept.is_quick and not is_quick)
    if kept is None or is_due:
        kept = tune(
            config,
            subject,
            console(is_error=True),
            formats=wanted,
            is_quick=is_quick,
            most_loss=most_loss,
        )
    elif not as_json:
        _print(f"{subject.name} was tuned already; --force measures again")
    return _show(kept, as_json=as_json)


def show_tuned(config: Config, model: str | None, *, as_json: bool) -> int:
    """Show what is kept for a model; status 1 where nothing is."""
    from llmos.memory.tuned import recall

    subject = find_subject(config, model)
    kept = recall(config.tuned_folder, subject.path)
    if kept is not None:
        return _show(kept, as_json=as_json)
    if as_json:
        print("null")
    else:
        _print(f"{subject.name} was not tuned on this machine: llmos tune {subject.name}")
    return exits.FAILED


def tune(
    config: Config,
    subject: Subject,
    screen: Console,
    *,
    formats: Sequence[Format] | None = None,
    is_quick: bool,
    most_loss: float | None = None,
) -> Tuned:
    """Measure, choose and keep. Copies that lost are deleted, those that were here before stay.

    Raises: DeviceError when the file as shipped cannot be measured; SyscallError("storage").
    """
    from llmos.drivers.llama_requantise import copy_path, shipped
    from llmos.memory.tuned import Tuned, fingerprint, keep, recall, this_machine
    from llmos.tuning import MOST_LOSS, Tuning, candidates
    from llmos.tuning_bench import ModelBench, cores, room_for

    started = time.monotonic()
    _warn_if_busy(screen, cores())
    before = recall(config.tuned_folder, subject.path)
    limit = MOST_LOSS if most_loss is None else most_loss
    with ModelBench(subject.path) as bench, _watched(subject.name, screen) as tell:
        tuning = Tuning(bench, tell, most_loss=limit)
        formats_here = list(candidates(shipped(subject.path), room_for(subject.path), formats))
        best = tuning.choose_format(formats_here)
        if not is_quick:
            best = tuning.choose_settings(best, cores())
        weights = best.choice.weights
        was_made = before is not None and before.made and before.choice.weights == weights
        tuned = Tuned(
            model=subject.name,
            machine=this_machine(),
            fingerprint=fingerprint(subject.path),
            choice=best.choice,
            rows=tuple(tuning.rows),
            is_quick=is_quick,
            made=bench.is_made(weights) or was_made,
            took_s=round(time.monotonic() - started, 1),
            tuned_at=time.time(),
        )
        keep(config.tuned_folder, tuned)
        bench.win(weights)
    if before is not None and before.made and before.choice.weights not in ("shipped", weights):
        copy_path(subject.path, before.choice.weights).unlink(missing_ok=True)
    return tuned


def find_subject(config: Config, model: str | None) -> Subject:
    """The file behind a configured model, or a model of the store.

    Raises: UsageError when it is no GGUF file; SyscallError("unknown_model").
    """
    name = model or config.default_model
    configured = config.models.get(name)
    if configured is not None and configured.driver != "llama_cpp":
        raise UsageError(f"{name} runs on the {configured.driver} driver; llama_cpp's are tuned")
    path = open_store(config).find(configured.source if configured else name)
    if path.suffix != ".gguf":
        raise UsageError(f"{name} is no GGUF file, and only those have number formats to choose")
    return Subject(name, path)


# --- internals ------------------------------------------------------------------------------------
@contextmanager
def _watched(name: str, screen: Console) -> Generator[Tell]:
    """Says what is being measured while it is, and leaves a line for each candidate."""
    with screen.status(f"tuning {name}") as status:

        def tell(doing: str, row: Row | None = None) -> None:
            if row is not None:
                screen.print(Text(f"{name}: {_line(row)}"), soft_wrap=True)
            else:
                status.update(Text(f"tuning {name}: {doing}"))

        yield tell


def _warn_if_busy(screen: Console, cores: int) -> None:
    load = os.getloadavg()[0]
    if load > _BUSY_LOAD_SHARE * cores:
        screen.print(
            Text(f"the machine is busy (load {load:.1f} on {cores} cores): rates may be wrong"),
            style="yellow",
            soft_wrap=True,
        )


def _show(tuned: Tuned, *, as_json: bool) -> int:
    if as_json:
        print(tuned.model_dump_json())
        return exits.OK
    screen = console()
    head = ("weights", "settings", "size", "prefill", *_BATCH_HEADS, "ms a token", "loss", "")
    screen.print(text_table(head, (_cells(row, tuned) for row in tuned.rows)))
    screen.print()
    _print(_verdict(tuned))
    return exits.OK


def _cells(row: Row, tuned: Tuned) -> Sequence[str]:
    return (
        row.choice.weights,
        _settings(row.choice),
        size(row.bytes) if row.bytes else "",
        rate(row.prefill),
        *(rate(row.decode.get(batch)) for batch in BATCHES),
        "-" if row.cost_ms is None else f"{row.cost_ms:.1f}",
        "" if row.loss is None else f"{row.loss:+.2%}",
        "chosen" if row.choice == tuned.choice and not row.note else row.note,
    )


def _verdict(tuned: Tuned) -> str:
    """What was chosen and what it gains, in a line or two."""
    shipped = tuned.rows[0]
    best = next(row for row in reversed(tuned.rows) if row.choice == tuned.choice)
    words = ["as shipped" if best.choice.weights == "shipped" else best.choice.weights]
    if settings := _settings(best.choice):
        words.append(settings)
    gain = ""
    if shipped.cost_ms and best.cost_ms and best is not shipped:
        gain = f", {shipped.cost_ms / best.cost_ms:.2f} times as fast as the file as shipped"
    scope = (
        "formats only; `llmos tune` without --quick tries settings too" if tuned.is_quick else ""
    )
    tail = f" ({scope})" if scope else ""
    return (
        f"{tuned.model} runs best with {' and '.join(words)}{gain}{tail}. "
        f"Measured in {seconds(tuned.took_s)} on {tuned.machine.cpu}, {tuned.machine.cores} cores."
    )


def _line(row: Row) -> str:
    named = ", ".join(filter(None, [row.choice.weights, _settings(row.choice)]))
    if row.cost_ms is None:
        return f"{named}: {row.note}"
    decoded = ", ".join(f"x{batch} {rate(row.decode.get(batch))}" for batch in BATCHES)
    judged = "" if row.loss is None else f", perplexity {row.loss:+.2%}"
    note = f": {row.note}" if row.note else ""
    return f"{named}: prefill {rate(row.prefill)}, decode {decoded}{judged}{note}"


def _settings(choice: Choice) -> str:
    """What a choice changes beside the format."""
    changed = choice.model_dump(exclude_defaults=True, exclude={"weights"})
    return ", ".join(f"{name} {value}" for name, value in changed.items())


def _print(text: str) -> None:
    console().print(Text(text), soft_wrap=True)
