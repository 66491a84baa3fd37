"""How to generate: sampling settings and constraints on the output.

The same values mean the same on every local driver; see `drivers/sampling.py` and
`drivers/constraint.py` for the arithmetic.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmos.syscalls.values import JsonObject, Value


class Sampling(Value):
    """How the next token is chosen. The default is greedy.

    `temperature` 0 takes the most likely token; the seed is then without effect. `top_k` None keeps
    all. `penalty_window_tokens` bounds how far back the penalties look. `logprobs` N asks for the
    chosen token's log-probability and those of the N most likely.
    """

    temperature: float = Field(default=0.0, ge=0.0, le=10.0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    min_p: float = Field(default=0.0, ge=0.0, lt=1.0)
    repetition_penalty: float = Field(default=1.0, gt=0.0, le=10.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    penalty_window_tokens: int = Field(default=256, ge=0)
    seed: int | None = Field(default=None, ge=0)
    logit_bias: dict[int, float] = Field(default_factory=dict)
    logprobs: int | None = Field(default=None, ge=0, le=20)


GREEDY = Sampling()


class JsonSchemaConstraint(Value):
    """The output is one JSON value valid under this JSON Schema."""

    type: Literal["json_schema"] = "json_schema"
    json_schema: JsonObject


class RegexConstraint(Value):
    """The whole output matches this regular expression (Rust regex syntax)."""

    type: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1)


class ChoiceConstraint(Value):
    """The output is exactly one of these strings."""

    type: Literal["choice"] = "choice"
    choices: tuple[str, ...] = Field(min_length=1)


class GrammarConstraint(Value):
    """The output is in the language of this Lark grammar (llguidance's dialect)."""

    type: Literal["grammar"] = "grammar"
    lark: str = Field(min_length=1)


Constraint = Annotated[
    JsonSchemaConstraint | RegexConstraint | ChoiceConstraint | GrammarConstraint,
    Field(discriminator="type"),
]
