"""One tuning from beginning to end: measured on the device, shown while it runs, kept.

Owns what becomes of the copies that were made: the winner stays, all others go. Which candidate is
better is decided in `tuning.py`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from llmos.config import Config
from llmos.drivers.contract import DeviceError
from llmos.drivers.llama_requantise import Format, copy_path, shipped
from llmos.drivers.tuning import BATCHES
from llmos.exits import UsageError
from llmos.memory.model_store import ModelStore
from llmos.memory.tuned import Choice, Row, Tuned, fingerprint, keep, recall, this_machine
from llmos.syscalls.errors import SyscallError
from llmos.tables import rate
from llmos.tuning import MOST_LOSS, Tell, Tuning, candidates
from llmos.tuning_bench import ModelBench, cores, room_for

_BUSY_LOAD_SHARE = 0.5  # of the cores, before we start


class Subject(NamedTuple):
    """What is tuned."""

    name: str
    path: Path


def find_subject(config: Config, model: str | None) -> Subject:
    """The file behind a configured model, or a model of the store.

    Raises: UsageError when it is no GGUF file; SyscallError("unknown_model").
    """
    name = model or config.default_model
    configured = config.models.get(name)
    if configured is not None and configured.driver != "llama_cpp":
        raise UsageError(f"{name} runs on the {configured.driver} driver; llama_cpp's are tuned")
    path = ModelStore(config.models_folder).find(configured.source if configured else name)
    if path.suffix != ".gguf":
        raise UsageError(f"{name} is no GGUF file, and only those have number formats to choose")
    return Subject(name, path)


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


def tune_pulled(config: Config, source: str, screen: Console) -> None:
    """Compare the number formats of a model that has just come here, if it is to be tuned.

    Nothing that goes wrong here is worse than a model that opens as shipped, so it is only told.
    """
    users = (
        name
        for name, model in config.models.items()
        if model.source == source and model.driver == "llama_cpp" and model.weights == "tuned"
    )
    name = next(users, None)
    if name is None:
        return
    try:
        subject = find_subject(config, name)
        if recall(config.tuned_folder, subject.path) is None:
            screen.print(Text(f"{name}: finding the fastest number format for this machine, once"))
            tune(config, subject, screen, is_quick=True)
    except (DeviceError, SyscallError, UsageError) as problem:
        screen.print(Text(f"{name} was not tuned: {problem}"), soft_wrap=True)


def settings_of(choice: Choice) -> str:
    """What a choice changes beside the format."""
    changed = choice.model_dump(exclude_defaults=True, exclude={"weights"})
    return ", ".join(f"{name} {value}" for name, value in changed.items())


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


def _line(row: Row) -> str:
    named = ", ".join(filter(None, [row.choice.weights, settings_of(row.choice)]))
    if row.cost_ms is None:
        return f"{named}: {row.note}"
    decoded = ", ".join(f"x{batch} {rate(row.decode.get(batch))}" for batch in BATCHES)
    judged = "" if row.loss is None else f", perplexity {row.loss:+.2%}"
    note = f": {row.note}" if row.note else ""
    return f"{named}: prefill {rate(row.prefill)}, decode {decoded}{judged}{note}"
