"""`llmos tune`: find how a model runs fastest on this machine, show the table, keep the choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from llmos import exits
from llmos.commands_models import parse_format
from llmos.drivers.tuning import BATCHES
from llmos.memory.tuned import recall
from llmos.tables import console, rate, seconds, size, text_table
from llmos.tuning_run import find_subject, settings_of, tune

if TYPE_CHECKING:
    from llmos.config import Config
    from llmos.drivers.llama_requantise import Format
    from llmos.memory.tuned import Row, Tuned

_BATCH_HEADS = tuple(f"x{batch}" for batch in BATCHES)


def tune_model(
    config: Config,
    model: str | None,
    *,
    formats: str | None,
    is_quick: bool,
    is_forced: bool,
    most_loss: float | None,
    as_json: bool,
) -> int:
    """Tune a model unless that was done, and show what was found.

    Formats or a loss that are given, and settings after a quick tuning, are new questions.
    """
    subject = find_subject(config, model)
    wanted: list[Format] | None = None
    if formats is not None:
        wanted = [parse_format(word) for word in formats.split(",")]
    kept = recall(config.tuned_folder, subject.path)
    is_asked_anew = is_forced or wanted is not None or most_loss is not None
    if kept is None or is_asked_anew or (kept.is_quick and not is_quick):
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
    subject = find_subject(config, model)
    kept = recall(config.tuned_folder, subject.path)
    if kept is not None:
        return _show(kept, as_json=as_json)
    if as_json:
        print("null")
    else:
        _print(f"{subject.name} was not tuned on this machine: llmos tune {subject.name}")
    return exits.FAILED


# --- internals ------------------------------------------------------------------------------------


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
        settings_of(row.choice),
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
    if settings := settings_of(best.choice):
        words.append(settings)
    gain = ""
    if shipped.cost_ms and best.cost_ms and best is not shipped:
        gain = f", {shipped.cost_ms / best.cost_ms:.2f} times as fast as the file as shipped"
    scope = " (only formats were compared: --quick)" if tuned.is_quick else ""
    return (
        f"{tuned.model} runs best with {' and '.join(words)}{gain}{scope}. "
        f"Measured in {seconds(tuned.took_s)} on {tuned.machine.cpu}, {tuned.machine.cores} cores."
    )


def _print(text: str) -> None:
    console().print(Text(text), soft_wrap=True)
