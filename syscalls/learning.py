"""The calls by which agents train, measure, serve and release models; `calls.py` has them all."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmos.syscalls import learning_results as r
from llmos.syscalls.call import Call
from llmos.syscalls.content import Message
from llmos.syscalls.results import Spawned
from llmos.syscalls.values import Value

# --- learn ----------------------------------------------------------------------------------------


class Example(Value):
    """One instruction example: the loss is on the last message, which the assistant says."""

    messages: tuple[Message, ...] = Field(min_length=1)


class Finetune(Call[Spawned]):
    """Train an adapter in a background process; `Wait` on the pid gives a `Trained` as value.

    `data` is a list of examples or the path of a JSONL file of them. `eval_share` of the rows are
    held out.
    """

    op: Literal["finetune"] = "finetune"
    data: tuple[Example, ...] | str
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    base: str | None = None
    objective: Literal["instruct", "pretrain", "classify", "tag", "prefer", "embed"] = "instruct"
    method: Literal["lora", "full", "qlora"] = "lora"
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    rank: int = Field(default=8, ge=1, le=256)
    batch_size: int = Field(default=4, ge=1)
    max_length_tokens: int = Field(default=512, ge=16)
    eval_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    seed: int = 0


class Evaluate(Call[r.Evaluated]):
    """Held-out loss of a model or adapter on examples."""

    op: Literal["evaluate"] = "evaluate"
    data: tuple[Example, ...] | str
    model: str | None = None
    adapter: str | None = None
    max_length_tokens: int = Field(default=512, ge=16)


class ModelList(Call[r.ModelVersions]):
    op: Literal["model_list"] = "model_list"


class ModelPromote(Call[r.ModelVersion]):
    """Make an adapter the default for its base: calls that name no adapter then use it."""

    op: Literal["model_promote"] = "model_promote"
    name: str


class ModelRollback(Call[r.ModelVersions]):
    """Undo the last promotion of a base model."""

    op: Literal["model_rollback"] = "model_rollback"
    base: str | None = None


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
