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


def texts(path: Path, *rows: tuple[str, str]) -> str:
    path.write_text("".join(json.dumps({"text": t, "label": x}) + "\n" for t, x in rows))
    return str(path)


CARD = "my card was swallowed by the machine at the station"
LOAN = "can the loan be paid back sooner than it was agreed"
FEES = "which fees are taken when money is sent to another country"


def test_near_duplicates_are_left_out_within_and_across_files(tmp_path: Path) -> None:
    data = texts(
        tmp_path / "train.jsonl",
        (CARD, "card"),
        (CARD + "!", "card"),  # repeats the first
        (LOAN, "loan"),
        (LOAN.upper(), "fee"),  # two people disagree: neither is dropped
        (FEES, "fee"),
    )
    held_out = texts(tmp_path / "dev.jsonl", (FEES + "?", "fee"), ("a loan for a house", "loan"))
    judged = texts(tmp_path / "test.jsonl", ("a loan for a house.", "loan"), (CARD, "card"))
    given = {"data": data, "eval_data": held_out, "test_data": judged}
    whole = gather(job(**given))
    assert [len(side) for side in whole[:3]] == [5, 2, 2]
    assert not whole.dropped
    with pytest.raises(SyscallError, match="no training row has the label 'card'"):
        gather(job(**given, dedupe=True))
    more = texts(tmp_path / "more.jsonl", ("where does one see the number of a card", "card"))
    replay = {"share": 0.2, "paths": (more,)}
    rows = gather(job(**given, dedupe=True, replay=replay, replay_data=(more,)))
    # The machine's card judges, and so does the house; the fees steer.
    assert [row.label for row in rows.train] == ["loan", "fee", "card"]
    assert ([row.text for row in rows.dev], len(rows.test)) == ([FEES + "?"], 2)
    assert rows.dropped == {"duplicates": 1, "leaks": 3}


def test_rows_that_all_judge_leave_nothing_to_train_on(tmp_path: Path) -> None:
    data = texts(tmp_path / "train.jsonl", (CARD, "card"), (LOAN, "loan"))
    with pytest.raises(SyscallError, match="every training row nearly repeats") as refused:
        gather(job(data=data, eval_data=data, dedupe=True))
    assert refused.value.fields == {"field": "dedupe"}
