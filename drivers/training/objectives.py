"""Which module trains which objective.

Owns the table of objectives. A builder loads the base and makes the task: it is given the job, the
device and the rows, for a head needs to know its labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.task import Built


class Rows(NamedTuple):
    """The checked rows of a job, divided. For a mixture each is an `OfTask`.

    `redacted` counts the personal data that was taken out of them, by kind; `dropped` the rows that
    were left out: "duplicates" of one of the same side, and "leaks" of one that judges.
    """

    train: Sequence[Any]
    dev: Sequence[Any]
    test: Sequence[Any]
    redacted: Mapping[str, int] = MappingProxyType({})
    dropped: Mapping[str, int] = MappingProxyType({})


Build = Callable[[TrainJob, str, Rows], Built]

# Each module has a function `build`; it is imported when a job needs it.
_MODULES = {
    "instruct": "llmos.drivers.training.instruct",
    "pretrain": "llmos.drivers.training.pretrain",
    "prefer": "llmos.drivers.training.prefer",
    "classify": "llmos.drivers.training.classify",
    "tag": "llmos.drivers.training.tag",
    "embed": "llmos.drivers.training.contrast",
}
_MIXTURE = "llmos.drivers.training.mixture"


def builder(job: TrainJob) -> Build:
    """What builds the job's model and task."""
    module = _MIXTURE if job.tasks else _MODULES[job.objective]
    return cast(Build, import_module(module).build)
