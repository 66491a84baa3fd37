"""A training job as a person watches it: a bar with loss, rate and time left, lines for the rest.

Made from the job's events, one JSON object a line on its standard output. Refuses to know where
they come from and how a job is started.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from llmos.tables import count, seconds

if TYPE_CHECKING:
    from llmos.syscalls.values import JsonObject


class EventLines:
    """Whole lines of a stream of bytes, as events; what is no JSON object is passed over."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[JsonObject]:
        """The events that are whole now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                yield event


class TrainingView:
    """What a terminal shows of one job; a context, so that the bar ends with it.

    Where nobody watches, a line for each event that is worth one.
    """

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=screen,
            disable=not screen.is_terminal,
        )
        self._task = self._bar.add_task("training", total=None, figures="", visible=False)

    def __enter__(self) -> TrainingView:
        self._bar.start()
        return self

    def __exit__(self, *why: object) -> None:
        self._bar.stop()

    def show(self, event: JsonObject) -> None:
        """Show an event."""
        if event["event"] == "progress":
            self._bar.update(
                self._task,
                visible=True,
                completed=event["step"],
                total=event["steps"],
                figures=figures(event),
            )
        if line := told(event, has_bar=self._screen.is_terminal):
            self._bar.console.print(Text(line), soft_wrap=True)


def figures(event: JsonObject) -> str:
    """The figures of a progress event."""
    left = event.get("eta_s")
    return (
        f"loss {event['loss']:.4f}  rate {event['learning_rate']:.2g}  "
        f"{count(event['tokens_per_s'])} tokens/s"
        + (f"  {seconds(left)} left" if left is not None else "")
    )


def told(event: JsonObject, *, has_bar: bool = False) -> str | None:
    """An event in one line; None for one that is not worth it, with a bar also progress."""
    match event["event"]:
        case "queued":
            return "waiting: another job trains"
        case "start":
            return _start(event)
        case "resumed":
            return f"goes on from step {event['step']} of {event['steps']}"
        case "restarted":
            return f"the worker was ended by signal {event['signal']}; it starts again"
        case "micro_batch":
            return f"out of memory: {event['rows']} rows at a time from step {event['step']} on"
        case "eval":
            return _scores(event)
        case "progress" if not has_bar:
            return f"step {event['step']}/{event['steps']}  {figures(event)}"
        case "cancelled":
            return f"cancelled after step {event['step']}; the best so far is in {event['path']}"
        case "done":
            return f"done in {seconds(event['seconds'])}, {count(event['tokens'])} tokens"
        case _:
            return None


# --- internals ------------------------------------------------------------------------------------


def _start(event: JsonObject) -> str:
    parts = [f"{count(event['train_rows'])} rows to learn"]
    parts += [
        f"{count(event[field])} {what}"
        for field, what in (
            ("eval_rows", "held out"),
            ("test_rows", "to test"),
            ("truncated", "cut"),
            ("skipped", "left out"),
        )
        if event.get(field)
    ]
    return (
        f"{', '.join(parts)}; {count(event['steps'])} steps, "
        f"{count(event['trainable_parameters'])} weights"
    )


def _scores(event: JsonObject) -> str:
    when = {"before": "before training", "after": "best", "test": "on test rows"}.get(
        event["when"], event["when"]
    )
    scores: JsonObject = event.get("metrics") or {}
    if event.get("loss") is not None:
        scores = {"loss": event["loss"], **scores}
    shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if name != "tokens")
    return f"{when}: {shown}"
