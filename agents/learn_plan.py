"""What a learning loop is to do: its practice, its budget, and when a version is good enough."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from llmos.syscalls.calls import GateCheck
from llmos.syscalls.errors import invalid
from llmos.syscalls.recipe import NamedFields
from llmos.syscalls.values import JsonObject


class Plan(NamedFields):
    """A loop. Rounds, seconds and tokens are its budget; None is no bound.

    `practice` is the program that the agent learns by. A round lets it try `tasks` new tasks, each
    up to `attempts` times, and trains when `min_rows` new rows are there; otherwise what was found
    waits for the next round. A version is measured on `eval_tasks` others and promoted when the
    lower bound of its gain over the version in use is more than `min_gain`. After `patience`
    versions in a row that were not, the loop ends. Rounds begin no nearer than `every_s`.

    `traces` are namespaces whose recorded episodes are learned from too, as far as they reached
    `min_reward`; with `tasks` 0 nothing else is. `checks` are made besides before a promotion.

    `settings` are fields of `Finetune`: how to train. `name` begins the names of versions.
    `data_share` of the rows is the most that one kind of task may have.
    """

    practice: str = Field(min_length=1)
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,47}$")
    model: str | None = None
    base: str | None = None
    rounds: int | None = Field(default=3, ge=1)
    seconds: float | None = Field(default=None, gt=0)
    tokens: int | None = Field(default=None, ge=1)
    tasks: int = Field(default=96, ge=0)
    attempts: int = Field(default=6, ge=2)
    temperature: float = Field(default=0.8, gt=0, le=5)
    eval_tasks: int = Field(default=96, ge=4)
    min_rows: int = Field(default=24, ge=1)
    min_gain: float = Field(default=0.0, ge=0, lt=1)
    data_share: float = Field(default=0.3, gt=0, le=1)
    patience: int = Field(default=2, ge=1)
    every_s: float = Field(default=0.0, ge=0)
    seed: int = Field(default=0, ge=0)
    traces: tuple[str, ...] = ()
    min_reward: float = 1.0
    checks: tuple[GateCheck, ...] = ()
    settings: JsonObject = {}

    @model_validator(mode="after")
    def _has_source(self) -> Self:
        if not self.tasks and not self.traces:
            raise ValueError("tasks: with 0 there must be traces to learn from")
        return self


def make_plan(fields: JsonObject) -> Plan:
    """A plan from its fields.

    Raises: SyscallError("invalid"), for an unknown field naming the nearest known one.
    """
    try:
        return Plan.model_validate(fields)
    except ValidationError as problem:
        raise invalid(problem) from problem


def changed_fields(before: JsonObject, now: Plan) -> list[str]:
    """The fields that differ from those of an earlier run and say what is learned.

    A budget may be another one: that is how a loop goes on after its budget was spent.
    """
    budget = {"rounds", "seconds", "tokens", "every_s", "patience"}
    fields: dict[str, Any] = now.model_dump(mode="json")
    return [name for name in fields if name not in budget and before.get(name) != fields[name]]
