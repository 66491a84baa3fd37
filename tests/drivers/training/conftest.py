"""A job on a tiny model with rows of its own, and what takes the place of standard output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.training.job import TrainJob
from llmos.syscalls.values import JsonObject


class Events(list[JsonObject]):
    """Takes the place of standard output."""

    def __call__(self, event: str, **fields: Any) -> None:
        self.append({"event": event, **fields})

    def of(self, event: str) -> list[JsonObject]:
        return [one for one in self if one["event"] == event]


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def job(tiny_model_path: Path, tmp_path: Path) -> TrainJob:
    """A job of 12 rows, 9 to train on."""
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{n}", "completion": "even" if n % 2 == 0 else "odd"} for n in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return TrainJob(
        base=str(tiny_model_path),
        data=str(data),
        data_name="rows.jsonl",
        output=str(tmp_path / "version"),
        epochs=10,
        learning_rate=1e-2,
        eval_share=0.25,
    )
