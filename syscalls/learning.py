"""The calls by which agents train, measure, serve and release models; `calls.py` has them all."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmos.syscalls import learning_results as r
from llmos.syscalls.call import Call
from llmos.syscalls.content import Message
from llmos.syscalls.recipe import Recipe
from llmos.syscalls.results import Spawned
from llmos.syscalls.values import JsonObject, Value

# --- learn ----------------------------------------------------------------------------------------


class Example(Value):
    """One instruction example: the loss is on the last message, which the assistant says."""

    messages: tuple[Message, ...] = Field(min_length=1)


AnyRow = Annotated[Example | JsonObject, Field(union_mode="left_to_right")]


class Finetune(Recipe, Call[Spawned]):
    """Train a version in a background process; `Wait` on the pid gives a `Trained` as value.

    `data` is a list of examples or the path of a file of rows; a mixture has `tasks` instead.
    `base` is a configured model, a base, or a version to go on from, which becomes the parent. The
    same call again goes on where the job stopped.
    """

    op: Literal["finetune"] = "finetune"
    data: tuple[AnyRow, ...] | str = ()
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    base: str | None = None


class ModelList(Call[r.ModelVersions]):
    """The configured models and the versions; of one `name`, its lineage and what was decided.

    A lineage is a version and what it was made from, the version first.
    """

    op: Literal["model_list"] = "model_list"
    name: str | None = None


class GateCheck(Value):
    """What a version must reach on one set before it is promoted.

    `data` is the path of the set; `objective` what its rows are and `metric` one of the metrics, as
    `Evaluate` has them. `at_least` and `at_most` are absolute. `max_regression` is by how much it
    may be worse than what serves now, and `min_gain` by how much it must be better. A safety check
    binds a forced promotion too.
    """

    name: str = Field(min_length=1)
    data: str = Field(min_length=1)
    metric: str = Field(min_length=1)
    objective: (
        Literal["instruct", "pretrain", "generate", "classify", "tag", "prefer", "embed"] | None
    ) = None
    is_higher_better: bool = True
    at_least: float | None = None
    at_most: float | None = None
    max_regression: float | None = Field(default=None, ge=0)
    min_gain: float | None = None
    is_safety: bool = False


class ModelPromote(Call[r.ModelVersion]):
    """Have a version serve its slot, once the slot's gate and `checks` let it.

    An adapter or full weights serve their base: calls that name no adapter then use them from their
    next one on. `slot` is by default the version's own. `force` overrides the gate, but not its
    safety checks, and is kept with the decision.
    """

    op: Literal["model_promote"] = "model_promote"
    name: str
    slot: str | None = None
    checks: tuple[GateCheck, ...] = ()
    force: bool = False
    reason: str = ""


class ModelRollback(Call[r.ModelVersions]):
    """Undo the last promotion of a slot; `base` is by default that of the default model."""

    op: Literal["model_rollback"] = "model_rollback"
    base: str | None = None
    reason: str = ""


class ModelDelete(Call[r.Deleted]):
    """Delete a version that nobody needs, and its files as far as no other version has them.

    Refused while it serves, is used, is pinned, or another version was made from it.
    """

    op: Literal["model_delete"] = "model_delete"
    name: str


NumberFormat = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]


class ModelExport(Call[r.Exported]):
    """Write a version merged with its base, for other programs.

    `quantize` is the number format of a GGUF file: F32, F16 (the default), BF16, Q8_0, Q4_0, Q4_1.
    `path` is by default in the kernel's home.
    """

    op: Literal["model_export"] = "model_export"
    name: str
    format: Literal["safetensors", "gguf"] = "safetensors"
    quantize: NumberFormat | None = None
    path: str | None = None


class Classify(Call[r.Classified]):
    """Label texts by a task model: a version by its name, or what serves under the name of a slot.

    `top_k` keeps the most likely labels of each text; None keeps all. `task` says which one, where
    a version has several. A promotion or rollback reaches the next call.
    """

    op: Literal["classify"] = "classify"
    texts: tuple[str, ...] = Field(min_length=1)
    model: str = Field(min_length=1)
    task: str | None = None
    top_k: int | None = Field(default=None, ge=1)


class Tag(Call[r.Tagged]):
    """Find entities in texts by a task model, named as in `Classify`.

    A text is split into words and punctuation; one that is given as a list of words is left so.
    """

    op: Literal["tag"] = "tag"
    texts: tuple[str | tuple[str, ...], ...] = Field(min_length=1)
    model: str = Field(min_length=1)
    task: str | None = None
