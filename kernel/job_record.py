"""What a training worker has said so far, and what it comes to.

Owns the reading of a worker's events. Refuses to know how they are carried.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from llmos.syscalls.errors import ErrorValue, SyscallError
from llmos.syscalls.evaluation_results import Evaluated
from llmos.syscalls.learning_results import ModelVersion, Trained
from llmos.syscalls.values import JsonObject

OnProgress = Callable[[JsonObject], None]

CURVE_POINTS = 200  # of a training's losses that its version keeps
KEPT_EVENTS = ("progress", "eval")  # of an earlier worker of the same job


@dataclass(slots=True)
class JobRecord:
    """The events of one job, from all workers that it had."""

    on_progress: OnProgress
    losses: dict[int, float] = field(default_factory=dict[int, float])
    held_out: dict[int, float] = field(default_factory=dict[int, float])  # loss by step
    evals: dict[str, JsonObject] = field(default_factory=dict[str, JsonObject])
    last: dict[str, JsonObject] = field(default_factory=dict[str, JsonObject])  # by event
    rows: list[JsonObject] = field(default_factory=list[JsonObject])  # each row's origin and loss

    def hear(self, event: JsonObject) -> None:
        """Take an event in and hand it on."""
        self.take(event)
        self.on_progress(event)

    def take(self, event: JsonObject) -> None:
        """Take an event in."""
        match event["event"]:
            case "progress":
                self.losses[event["step"]] = event["loss"]
            case "eval":
                self.evals[event["when"]] = event
                if isinstance(step := event.get("step"), int) and event.get("loss") is not None:
                    self.held_out[step] = event["loss"]
            case "rows":
                self.rows += event["rows"]
            case kind:
                self.last[kind] = event

    def raise_told(self, died: SyscallError) -> None:
        """Raise the error that the worker told of before it ended, if it did."""
        if told := self.last.get("error"):
            fields = {key: value for key, value in told.items() if key != "event"}
            raise SyscallError.from_value(ErrorValue(**fields)) from died

    def raise_cancelled(self) -> None:
        """Raise that the worker was told to stop by somebody else, if it was."""
        if kept := self.last.get("cancelled"):
            raise SyscallError(
                "failed",
                f"the worker was told to stop from outside, after step {kept['step']}; its best "
                f"version so far is in {kept['path']}, and the same call goes on from there",
                step=kept["step"],
                path=kept["path"],
            )

    def eval_loss(self, when: str) -> float | None:
        return self.evals[when]["loss"] if when in self.evals else None

    def metrics(self) -> dict[str, float]:
        """The version's figures: losses, and the scores on held-out and on test rows."""
        found = {
            "train_loss": self.losses[max(self.losses)] if self.losses else None,
            "eval_loss_before": self.eval_loss("before"),
            "eval_loss_after": self.eval_loss("after"),
        }
        for when, prefix in (("after", "eval_"), ("test", "test_")):
            scores = self.evals[when]["metrics"] if when in self.evals else {}
            found |= {prefix + name: value for name, value in scores.items() if name != "tokens"}
        return {name: value for name, value in found.items() if value is not None}

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Loss by step in training, thinned to `CURVE_POINTS`, and on the held-out rows."""
        training = sorted(self.losses.items())
        thinned = training[:: max(1, math.ceil(len(training) / CURVE_POINTS))]
        found = {"training": thinned, "held out": sorted(self.held_out.items())}
        return {name: points for name, points in found.items() if points}

    def trained(self, version: ModelVersion) -> Trained:
        done = self.last["done"]
        return Trained(
            version=version,
            losses=tuple(sorted(self.losses.items())),
            eval_loss_before=self.eval_loss("before"),
            eval_loss_after=self.eval_loss("after"),
            seconds=done["seconds"],
            tokens=done["tokens"],
        )

    def evaluated(self) -> Evaluated:
        only = self.evals["only"]
        loss = only["loss"]
        return Evaluated(
            loss=loss,
            perplexity=None if loss is None else math.exp(min(loss, 700.0)),
            rows=only["rows"],
            tokens=only["tokens"],
            metrics=only["metrics"],
        )
