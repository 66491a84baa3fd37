"""What evaluations and searches return."""

from __future__ import annotations

from typing import Literal

from llmos.syscalls.values import JsonObject, JsonValue, Value


class Table(Value):
    """Rows under named columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[JsonValue, ...], ...]


class Change(Value):
    """How much higher a metric of one model is than another's on the same rows.

    `low` and `high` bound 95% of paired resamples; `is_clear` when no change lies outside.
    """

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


class Compared(Value):
    """Another model on the same rows. `changes` are the first model's metrics less this one's."""

    model: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = {}
    changes: dict[str, Change] = {}


class Evaluated(Value):
    """A model's figures on rows that it was not trained on.

    `loss` is the mean negative log-likelihood, in nats, per target token, label or tag, and
    `perplexity` its exponential; None where no likelihood is measured. `intervals` bound 95% of
    bootstrap resamples of the rows. `tables` are by name: "classes", "confusion", "mistakes",
    "entities", "reliability", "worst". `report` is the HTML page, its Markdown beside it.
    """

    model: str = ""
    objective: str = "instruct"
    loss: float | None = None
    perplexity: float | None = None
    rows: int
    tokens: int
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    tables: dict[str, Table] = {}
    compared: tuple[Compared, ...] = ()
    report: str | None = None


class Trial(Value):
    """One finetune of a search. `value` is its metric, for a pruned one the last it reached."""

    number: int
    settings: JsonObject
    state: Literal["done", "pruned", "failed"]
    value: float | None = None
    steps: int = 0
    why: str = ""


class Searched(Value):
    """A finished search: the version that was best and all that was tried."""

    best: str
    settings: JsonObject
    metric: str
    value: float
    trials: tuple[Trial, ...]
    report: str | None = None
