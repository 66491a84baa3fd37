"""The rows of a job: read, redacted, freed of repetitions, divided, earlier tasks' rows among them.

Owns which rows train, which steer and which judge. Refuses to know tokens.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmos.drivers.rows.checks import check_apart, check_classes, check_labels
from llmos.drivers.rows.kinds import Row
from llmos.drivers.rows.near import without_near_duplicates, without_near_leaks
from llmos.drivers.rows.reading import read_rows
from llmos.drivers.rows.redaction import load_redactor, redact_rows
from llmos.drivers.rows.splits import Split, split
from llmos.drivers.training.job import TrainJob, file_hash
from llmos.drivers.training.objectives import Rows
from llmos.drivers.training.task import OfTask
from llmos.syscalls.errors import SyscallError


def gather(job: TrainJob) -> Rows:
    """Read and divide a job's rows. Raises: SyscallError, "invalid" where they cannot be learnt."""
    if not job.tasks:
        return _of_one(job)
    for field in ("data", "eval_data", "test_data", "replay"):
        if getattr(job, field):
            raise SyscallError(
                "invalid",
                f"{field}: with tasks each has its own rows, and eval_share of them are held out; "
                "put others into a task's file, and measure on more of them by Evaluate",
                field=field,
            )
    parts = [
        (task.name, _of_one(job.model_copy(update=_as_task(task.data, task.objective))))
        for task in job.tasks
    ]
    train, dev, test = (
        [OfTask(name, row) for name, rows in parts for row in rows[:3][side]] for side in range(3)
    )
    redacted = sum((Counter(rows.redacted) for _, rows in parts), Counter[str]())
    dropped = sum((Counter(rows.dropped) for _, rows in parts), Counter[str]())
    return Rows(train, dev, test, redacted, dropped)


def data_hashes(job: TrainJob) -> dict[str, str]:
    """The sha256 of every data file of a job, by path. Raises: OSError."""
    given = (job.data, job.eval_data, job.test_data, *job.replay_data)
    paths = [path for path in (*given, *(task.data for task in job.tasks)) if path]
    return {path: file_hash(Path(path)) for path in paths}


def _as_task(data: str, objective: str) -> dict[str, Any]:
    return {"data": data, "data_name": data, "objective": objective, "tasks": ()}


def _of_one(job: TrainJob) -> Rows:
    redacted: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    rows = _read(job, job.data, job.data_name, redacted)
    if job.dedupe:
        kept, _ = without_near_duplicates(rows)
        dropped["duplicates"] = len(rows) - len(kept)
        rows = kept
    dev: list[Row] = []
    test: list[Row] = []
    if job.eval_data is None:
        train, dev, _ = split(
            rows,
            eval_share=job.eval_share,
            seed=job.seed,
            stratify=job.stratify,
            by_group=job.group_field is not None,
        )
    else:
        train = rows
        dev = _read(job, job.eval_data, job.eval_data, redacted)
    check_classes(train)
    train = _with_replay(train, job, redacted)  # its labels are known, and its groups seen
    if job.test_data is not None:
        test = _read(job, job.test_data, job.test_data, redacted)
    if job.dedupe:
        train, dev, test = _without_leaks(Split(train, dev, test), dropped)
    for field, held_out in (("eval_data", dev), ("test_data", test)):
        if getattr(job, field) is not None:
            check_labels(train, held_out, field=field)
            check_apart(train, held_out, field=field)
    return Rows(train, dev, test, redacted, dropped)


def _without_leaks(divided: Split[Row], dropped: Counter[str]) -> Split[Row]:
    cleaned = without_near_leaks(divided)
    dropped["leaks"] = len(cleaned.dropped)
    if not cleaned.split.train:
        raise SyscallError(
            "invalid",
            "dedupe: every training row nearly repeats a row held out, so none is left to train on",
            field="dedupe",
        )
    return cleaned.split


def _read(job: TrainJob, path: str, name: str | None, redacted: Counter[str]) -> list[Row]:
    """A file's rows, without personal data where that is asked for; what was found is counted."""
    rows = read_rows(Path(path), job.objective, name=name, group_field=job.group_field)
    if job.redact:
        rows, found = redact_rows(rows, load_redactor(job.redactor))
        redacted.update(found)
    return rows


def _with_replay(train: Sequence[Row], job: TrainJob, redacted: Counter[str]) -> list[Row]:
    """The training rows and, as `replay` says, so many of earlier tasks that they have its share.

    Equally many come from each earlier task; the rows of one with too few are all there once.
    """
    if job.replay is None:
        return list(train)
    if not job.replay_data:
        raise SyscallError("invalid", "replay: names no versions and no paths", field="replay")
    wanted = round(len(train) * job.replay.share / (1 - job.replay.share))
    rows = list(train)
    for number, path in enumerate(job.replay_data):
        earlier = _read(job, path, path, redacted)
        count = (wanted * (number + 1)) // len(job.replay_data) - (wanted * number) // len(
            job.replay_data
        )
        rows += random.Random(f"{job.seed} {number}").sample(earlier, min(count, len(earlier)))
    return rows
