"""Training runs of task models for the benchmarks, each kept in a file as soon as it is over.

A quality benchmark is hours of runs of minutes each; with `--keep FILE` one that was cut short goes
on where it was, for parts that are there are not computed again. A run is what the worker of a job
does in its own process: the objective's builder and the loop, then scores on held-out rows.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.loop import Run
from llmos.drivers.training.objectives import Rows, builder
from llmos.drivers.training.task import Built, Item, Measured
from llmos.memory.model_store import ModelStore

DATA = Path(__file__).parent / "data"
ENCODER = "minilm"
_SAVE_EVERY_S = 40.0


@dataclass(frozen=True, slots=True)
class Trained:
    """A run that is over: the model as it ended, and what it took."""

    built: Built
    steps: int
    seconds: float

    def score(self, rows: Sequence[Any], *, batch_size: int = 32) -> Measured:
        """How the model does on rows that it was not trained on."""
        items: Sequence[Item] = self.built.task.encode(rows).items
        return self.built.task.evaluate(self.built.model, items, batch_size=batch_size)


def encoder_folder() -> str:
    """Where the encoder that all runs begin from is."""
    return str(ModelStore().path(ENCODER))


def train(rows: Sequence[Any], *, state: Path | None = None, **settings: Any) -> Trained:
    """Train on rows, with a job's settings.

    What was reached is kept in the file `state` now and then: a run that was cut short goes on from
    there. Raises: SyscallError.
    """
    import torch

    torch.set_num_threads(_spare_cores())
    job = TrainJob.model_validate(
        {"base": encoder_folder(), "base_name": ENCODER, "output": "", **settings}
    )
    built = builder(job)(job, "cpu", Rows(rows, (), ()))
    run = Run(built, built.task.encode(rows).items, job, device="cpu")
    before_s = 0.0 if state is None else _restore(run, state)
    started = saved = time.perf_counter()
    while run.step < run.steps:
        run.take_step()
        now = time.perf_counter()
        if state is not None and now - saved > _SAVE_EVERY_S:
            saved = now
            _save(run, state, before_s + now - started)
    run.average()
    if state is not None:
        state.unlink(missing_ok=True)
    return Trained(built, run.steps, before_s + time.perf_counter() - started)


def _spare_cores() -> int:
    """Cores without other work, one at least: two threads of which one waits for its core crawl."""
    return max(1, round(len(os.sched_getaffinity(0)) - os.getloadavg()[0]))


def _save(run: Run, state: Path, seconds: float) -> None:
    import torch
    from safetensors.torch import save_file

    partial = state.with_suffix(".partial")
    save_file({**run.state(), "seconds": torch.tensor(seconds)}, partial)
    partial.replace(state)


def _restore(run: Run, state: Path) -> float:
    """Go on from a kept state; gives the seconds that it had taken."""
    from safetensors.torch import load_file

    if not state.exists():
        return 0.0
    tensors = load_file(state)
    seconds = tensors.pop("seconds").item()
    run.restore(tensors)
    return seconds


class Kept:
    """Figures by name of the part that gave them, in a file or for this process only."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._found: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                part = json.loads(line)
                self._found[part["part"]] = part["figures"]

    def state(self, part: str) -> Path | None:
        """Where a part that trains keeps what it has reached; None when nothing is kept."""
        return None if self._path is None else self._path.with_suffix(f".{part}.state")

    def get(self, part: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The figures of a part: kept ones, else measured now and kept."""
        if part not in self._found:
            started = time.perf_counter()
            figures = dict(measure())
            figures.setdefault("seconds", round(time.perf_counter() - started, 1))
            self._found[part] = figures
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(json.dumps({"part": part, "figures": figures}) + "\n")
        return self._found[part]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options of a benchmark of runs."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--quick", action="store_true", help="few rows and steps: no figures of use")
    found.add_argument("--keep", type=Path, help="a file of finished parts, read and added to")
    return found
