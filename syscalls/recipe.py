"""How a model is trained: every choice of a training job but its name, its base and its rows.

Owns the fields that the call, a job file and the worker share, with their limits. Refuses to know
what this machine can do of it, and what the numbers mean to an optimizer.
"""

from __future__ import annotations

import difflib
from typing import Any, Literal, Self, cast

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llmos.syscalls.values import Value

Objective = Literal["instruct", "pretrain", "classify", "tag", "prefer", "embed"]
Method = Literal["lora", "full", "qlora", "dora", "ia3", "prompt_tuning", "prompt"]


class NamedFields(Value):
    """A value that answers a field it does not have with the nearest one that it has."""

    @model_validator(mode="before")
    @classmethod
    def _name_nearest(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        known = list(cls.model_fields)
        for name in cast("dict[str, Any]", given):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"; the nearest is {near[0]}" if near else f"; known: {', '.join(known)}"
                raise PydanticCustomError(
                    "unknown_field", "there is no field {name}{hint}", {"name": name, "hint": hint}
                )
        return given


class ReplaySpec(NamedFields):
    """Rows of earlier tasks that are trained on again, so that they are not forgotten.

    `share` of the training rows come from them, equally many of each. `versions` are names in the
    registry whose training data is known; `paths` are files of rows.
    """

    share: float = Field(default=0.2, gt=0.0, lt=1.0)
    versions: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


class TaskSpec(NamedFields):
    """One task of a mixture: its rows and how often they are drawn, relative to the others'."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    data: str
    objective: Objective
    weight: float = Field(default=1.0, gt=0)


class ScratchSpec(NamedFields):
    """A new language model of the Llama kind, and a BPE tokenizer trained on the same text."""

    vocabulary: int = Field(default=2048, ge=300)
    width: int = Field(default=128, ge=16)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % self.heads or self.width // self.heads % 2:
            raise PydanticCustomError("heads", "width must be an even multiple of heads")
        return self


class Recipe(NamedFields):
    """How to train.

    Of the data: `eval_data` and `test_data` are files of rows; without `eval_data`, `eval_share` of
    the rows are held out, whole groups of `group_field`, in the classes' shares if `stratify`.
    `dedupe` leaves out rows that nearly repeat an earlier one with the same label, training rows
    that nearly repeat one held out, and held-out rows that nearly repeat one of `test_data`.

    Of a step: a batch of `batch_size` rows is computed `micro_batch` rows at a time (None: as many
    as the device computes well); `packing` lays them side by side without padding and changes no
    result. `learning_rate` None is the method's own; it climbs over `warmup_share` of the steps and
    falls to nothing. `alpha` None is twice `rank`. `layer_decay` multiplies the rate from each
    layer to the one below; `label_smoothing` is the share of a class's target that goes to all
    classes alike, `token_dropout` the share of a text's tokens that a step leaves out, `contrast`
    the weight of drawing texts of a class together (all three of `classify`). `freeze` names what
    is not trained: "embeddings", "layers.0-3".

    Of a run: `max_steps` bounds what `epochs` asks for. Every `eval_steps` (None: once an epoch)
    the held-out rows are scored by `metric` (None: the objective's own), the best weights are kept,
    and `patience` scores without a better one end the run. A run goes on from its last checkpoint,
    of which there is one every `checkpoint_steps`.

    With the method "prompt" nothing is trained: `shots` of the rows that are most like a text are
    shown before it (0: none), after `instruction`.

    `join` names versions of the objective classify and the method lora on the same base: the rows
    train an adapter of their own, and the version has all of them, with a router that sends each
    text to the one that learnt its kind.

    `average` is the share of the parent version in the final weights. `tasks` with `temperature`
    is a mixture, in place of rows of its own. `scratch` is a new model to pre-train, in place of a
    base. `redact` takes personal data out of the rows. `precision` is that of the weights which are
    not trained, and of products with them. `device` None is the fastest one here.
    """

    objective: Objective = "instruct"
    method: Method = "lora"
    eval_data: str | None = None
    test_data: str | None = None
    eval_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    group_field: str | None = None
    stratify: bool = False
    redact: bool = False
    dedupe: bool = False
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    rank: int = Field(default=8, ge=1, le=256)
    alpha: float | None = Field(default=None, gt=0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    label_smoothing: float = Field(default=0.1, ge=0.0, lt=1.0)
    token_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    contrast: float = Field(default=0.0, ge=0.0)
    warmup_share: float = Field(default=0.05, ge=0.0, le=1.0)
    batch_size: int = Field(default=4, ge=1)
    micro_batch: int | None = Field(default=None, ge=1)
    max_length_tokens: int = Field(default=512, ge=16)
    packing: bool = True
    freeze: tuple[str, ...] = ()
    layer_decay: float | None = Field(default=None, gt=0.0, le=1.0)
    checkpoint_steps: int = Field(default=50, ge=1)
    eval_steps: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
    metric: str | None = None
    seed: int = 0
    shots: int = Field(default=4, ge=0, le=64)
    instruction: str | None = None
    replay: ReplaySpec | None = None
    join: tuple[str, ...] = ()
    average: float | None = Field(default=None, gt=0.0, lt=1.0)
    tasks: tuple[TaskSpec, ...] = ()
    temperature: float = Field(default=1.0, gt=0)
    scratch: ScratchSpec | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str | None = None
