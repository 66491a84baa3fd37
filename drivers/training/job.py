"""A worker's job as a file: what to train or measure, from where and to where.

Owns the fields of the file. `Recipe` says how to train; here is where everything lies and how the
process behaves. Refuses to know what any of it does.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from llmos.syscalls.recipe import Objective, Recipe
from llmos.syscalls.values import Value


class Job(Value):
    """What both modes need.

    `base` is a folder as transformers reads it, or a GGUF file. `data_name` is what errors call the
    data file; without one they count rows. `owner_pid` is the process to die with; None is nobody.
    """

    base: str
    data: str = ""
    data_name: str | None = None
    threads: int = Field(default=1, ge=1)
    nice: int = Field(default=10, ge=0, le=19)
    scheduling: Literal["batch", "idle"] = "batch"
    owner_pid: int | None = None


class TrainJob(Recipe, Job):
    """Train a version into the folder `output`; checkpoints go beside it into `checkpoints`.

    `base_name` is what the registry calls the base. `parent` is the folder of the version that
    training goes on from, a "full", "adapter" or "task" one by `parent_kind`; without one it starts
    at the base. `replay_data` are the files that `replay` names. To the versions of `join`, whose
    folders are in `join_folders`, what is trained is joined as `name`. `redactor` is "module:name"
    of what finds personal data, None the built-in one.
    """

    mode: Literal["train"] = "train"
    output: str
    base_name: str = ""
    parent: str | None = None
    parent_kind: Literal["full", "adapter", "task"] | None = None
    replay_data: tuple[str, ...] = ()
    name: str = "main"
    join_folders: tuple[str, ...] = ()
    redactor: str | None = None

    @property
    def checkpoints(self) -> Path:
        """Where the run's state is kept until it is over."""
        return Path(self.output).with_name("checkpoints")


class EvaluateJob(Job):
    """Measure the base, or the version in the folder `version` on it, on all rows.

    `version_kind` is the registry's.
    """

    mode: Literal["evaluate"] = "evaluate"
    objective: Objective = "instruct"
    version: str | None = None
    version_kind: Literal["full", "adapter", "task"] | None = None
    batch_size: int = Field(default=4, ge=1)
    max_length_tokens: int = Field(default=512, ge=16)
    device: str | None = None


AnyJob = Annotated[TrainJob | EvaluateJob, Field(discriminator="mode")]


def read_job(path: Path) -> TrainJob | EvaluateJob:
    """The job in a file. Raises: OSError, pydantic's ValidationError."""
    return TypeAdapter[Any](AnyJob).validate_json(path.read_bytes())


def file_hash(path: Path) -> str:
    """The sha256 of a file. Raises: OSError."""
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
