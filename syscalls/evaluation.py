"""The calls that say what a model is worth, and search for how best to train it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from llmos.syscalls import evaluation_results as r
from llmos.syscalls.call import Call
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.learning import AnyRow, Finetune
from llmos.syscalls.results import Spawned
from llmos.syscalls.values import JsonValue, Value

# --- evaluate -------------------------------------------------------------------------------------


class Evaluate(Call[r.Evaluated]):
    """Measure a model on rows, all of them held out: none is trained on.

    `model` is a configured model, a base, or a version of any kind; `adapter` a version on it.
    `data` is the rows, or the path of a file of them, and `objective` what they are:

    instruct, pretrain   chat or text: loss and perplexity
    generate             chat: is the answer generated for each row the wanted one, and how near
    classify             text and label: accuracy, F1, confusion, calibration
    tag                  words and BIO tags: F1 over whole entities
    prefer, embed        as training measures them

    None is what the version was made for, "instruct" for others. A decoder classifies by generating
    one of the `labels` (None: those of the rows) after `instruction`.
    Answers are cut to `max_tokens`.

    `against` are other models measured on the same rows, and compared row by row. `max_rows` takes
    so many rows, drawn by the seed, where no worker measures. `task` is one of a multi-task
    version. With `report` pages with tables and pictures are written.
    """

    op: Literal["evaluate"] = "evaluate"
    data: tuple[AnyRow, ...] | str
    model: str | None = None
    adapter: str | None = None
    against: tuple[str, ...] = ()
    objective: (
        Literal["instruct", "pretrain", "generate", "classify", "tag", "prefer", "embed"] | None
    ) = None
    task: str | None = None
    labels: tuple[str, ...] | None = Field(default=None, min_length=1)
    instruction: str | None = None
    max_rows: int | None = Field(default=None, ge=1)
    max_length_tokens: int = Field(default=512, ge=16)
    max_tokens: int = Field(default=64, ge=1)
    resamples: int = Field(default=1000, ge=100, le=100_000)
    seed: int = 0
    report: bool = False


class Between(Value):
    """Values of a setting: a range, in which a search draws the logarithm where `is_log`.

    A setting that counts something gets whole numbers.
    """

    low: float
    high: float
    is_log: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.is_log and self.low <= 0:
            raise ValueError("a logarithmic range starts above 0")
        return self


class OneOf(Value):
    """Values of a setting: one of these."""

    values: tuple[JsonValue, ...] = Field(min_length=1)


class Search(Call[Spawned]):
    """Search for the settings of a finetune that give the best metric.

    A background process; `Wait` on its pid gives a `Searched` as value. Each of the `trials` is a
    finetune of its own, a child of the search named `NAME-N`, `parallel` of them at a time. `space`
    gives the fields of `finetune` to vary. `metric` is one that the trials' evaluation gives; None
    is the one that decides which checkpoint is best. A trial worse than the median of earlier ones
    at the same step is stopped, unless not `is_pruned`. Only the best trial's version is kept.

    The same search issued again goes on where it ended, after a crash too.
    """

    op: Literal["search"] = "search"
    finetune: Finetune
    space: dict[str, Between | OneOf] = Field(min_length=1)
    trials: int = Field(default=20, ge=1, le=10_000)
    parallel: int = Field(default=1, ge=1, le=64)
    metric: str | None = None
    is_higher_better: bool | None = None
    is_pruned: bool = True
    seed: int = 0

    @model_validator(mode="after")
    def _check_space(self) -> Self:
        fixed = {"op", "name", "data", "objective", "eval_data", "test_data"}
        allowed = sorted(set(Finetune.model_fields) - fixed)
        for field in self.space:
            if field not in allowed:
                raise SyscallError(
                    "invalid",
                    f"space.{field}: a finetune has no such setting to vary; it has: "
                    + ", ".join(allowed),
                    field=f"space.{field}",
                )
        return self
