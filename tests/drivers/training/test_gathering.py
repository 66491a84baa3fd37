"""Which rows of a job train, steer and judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.training.gathering import gather
from llmos.drivers.training.job import TrainJob
from llmos.syscalls.errors import SyscallError


def write(path: Path, labels: str) -> str:
    rows = [{"text": f"{label} {place}", "label": label} for place, label in enumerate(labels)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def job(**fields: Any) -> TrainJob:
    given = {"base": "", "output": "", "objective": "classify", "eval_share": 0.25, **fields}
    return TrainJob.model_validate(given, strict=False)


def test_held_out_rows_may_have_the_labels_of_replayed_ones(tmp_path: Path) -> None:
    new, earlier = write(tmp_path / "new.jsonl", "ab" * 8), write(tmp_path / "old.jsonl", "cd" * 8)
    held_out = write(tmp_path / "held_out.jsonl", "abcd")
    with pytest.raises(SyscallError, match="no training row has the label"):
        gather(job(data=new, eval_data=held_out))
    replay = {"share": 0.5, "paths": (earlier,)}
    rows = gather(job(data=new, eval_data=held_out, replay=replay, replay_data=(earlier,)))
    assert (len(rows.train), len(rows.dev)) == (32, 4)


@pytest.mark.parametrize("field", ["data", "eval_data", "test_data", "replay"])
def test_tasks_have_rows_of_their_own(tmp_path: Path, field: str) -> None:
    path = write(tmp_path / "rows.jsonl", "ab" * 8)
    tasks = [{"name": "one", "data": path, "objective": "classify"}]
    assert len(gather(job(tasks=tasks)).train) == 12
    value = {"paths": (path,)} if field == "replay" else path
    with pytest.raises(SyscallError, match=f"{field}: with tasks each has its own rows"):
        gather(job(tasks=tasks, **{field: value}))
