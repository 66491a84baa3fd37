"""The folder of one training job: what was asked, its rows, its progress, and whether to go on.

    identity.json   what was asked, down to the hash of every data file: the same again goes on;
                    until it is over
    job.json        the worker's job
    rows.jsonl      the rows, if they came with the call
    events.jsonl    what the worker said, so that a job that goes on knows its whole past
    worker.log      what libraries said
    checkpoints/    the run's state, until it is over
    version/        the trained version's files, until the registry has them

Refuses to know processes and the registry. Worker threads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from llmos.drivers.training.checkpoints import Checkpoints
from llmos.drivers.training.job import Job, TrainJob, file_hash
from llmos.kernel.job_record import KEPT_EVENTS
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.learning import AnyRow, Finetune
from llmos.syscalls.recipe import Recipe
from llmos.syscalls.values import JsonObject


class JobFolder:
    """A job's folder, which may be left from an earlier run of the same job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "worker.log"
        self.job_file = path / "job.json"
        self.output = path / "version"
        self.events = path / "events.jsonl"
        self._identity = path / "identity.json"
        self._checkpoints = Checkpoints(path / "checkpoints")

    def open(self, call: Finetune, base: str) -> tuple[str, str | None]:
        """Make the folder, or find that it is of the same job; the data file and its name.

        Raises: SyscallError("invalid") saying what differs when an unfinished job of this name is
        another one; ("not_found") for data that is not there; ("storage").
        """
        with self.errors():
            self.path.mkdir(parents=True, exist_ok=True)
            data, data_name = write_rows(call.data, self.path)
            asked = _identity(call, base, data)
            if self._identity.exists():
                self._compare(call.name, json.loads(self._identity.read_bytes()), asked)
            else:
                partial = self._identity.with_suffix(".partial")
                partial.write_text(json.dumps(asked, indent=2), encoding="utf-8")
                partial.replace(self._identity)
            return data, data_name

    def write_job(self, job: Job) -> None:
        """Raises: SyscallError("storage")."""
        with self.errors():
            self.job_file.write_text(job.model_dump_json(indent=2), encoding="utf-8")

    def last_step(self) -> int | None:
        """The step of the last checkpoint."""
        return self._checkpoints.last_step()

    def past(self) -> Iterator[JsonObject]:
        """The kept events up to the last checkpoint: what was after it happens again."""
        last = self.last_step()
        if last is None or not self.events.exists():
            return
        for line in self.events.read_bytes().split(b"\n"):
            try:
                event = json.loads(line)
            except ValueError:  # the kernel ended in the middle of it
                continue
            if event["event"] in KEPT_EVENTS and (event.get("step") or 0) <= last:
                yield event

    def clean(self, *, keep_version: bool) -> None:
        """Remove what a registered job needs no more; another job may then have its name."""
        self._identity.unlink(missing_ok=True)
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        shutil.rmtree(self.path / "scratch", ignore_errors=True)
        if not keep_version:
            shutil.rmtree(self.output, ignore_errors=True)

    def errors(self) -> FolderErrors:
        return FolderErrors(self.path)

    def _compare(self, name: str, known: JsonObject, asked: JsonObject) -> None:
        differing = [
            f"{field} was {known.get(field)!r} and is {asked.get(field)!r}"
            for field in sorted(known.keys() | asked.keys())
            if known.get(field) != asked.get(field)
        ]
        if differing:
            raise SyscallError(
                "invalid",
                f"name: an unfinished job is called {name}, and it is another one: "
                f"{'; '.join(differing)}. Issue it as it was to go on, choose another name, or "
                f"remove {self.path}",
                field="name",
                differing=differing,
            )


class FolderErrors:
    """Within it what the disk refuses is `SyscallError("storage")`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        if isinstance(problem, OSError):
            raise SyscallError(
                "storage",
                f"the folder {self._path} cannot be written: {problem}",
                path=str(self._path),
            ) from problem


def write_rows(data: tuple[AnyRow, ...] | str, folder: Path) -> tuple[str, str | None]:
    """The rows' file, and what errors call it: rows of a call go into the job's folder."""
    if isinstance(data, str):
        return str(Path(data).absolute()), data
    if not data:
        return "", None
    path = folder / "rows.jsonl"
    lines = (
        json.dumps(row, ensure_ascii=False) if isinstance(row, dict) else row.model_dump_json()
        for row in data
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path), None


def _identity(call: Finetune, base: str, data: str) -> JsonObject:
    """What makes a job the same job: how it trains, on what, by content."""
    asked = call.model_dump(mode="json", include=set(Recipe.model_fields))
    replayed = call.replay.paths if call.replay else ()
    files = (data, call.eval_data, call.test_data, *replayed, *(task.data for task in call.tasks))
    hashes = [_hash(path) for path in files if path]
    return {"base": base, **asked, "data": hashes}


def _hash(path: str) -> str:
    try:
        return file_hash(Path(path))
    except FileNotFoundError as problem:
        raise SyscallError(
            "not_found", f"there is no data file {path}", what="file", name=path
        ) from problem


def settings_of(job: TrainJob) -> JsonObject:
    """The job as the version's card has it: enough to train the same again."""
    return job.model_dump(mode="json", include=set(Recipe.model_fields))
