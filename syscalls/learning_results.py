"""What the calls about models return.

Losses are in nats per target token.
"""

from __future__ import annotations

from typing import Literal

from llmos.syscalls.values import JsonObject, Value


class ModelVersion(Value):
    """An entry of the model registry: a base model or an adapter trained on one."""

    name: str
    kind: Literal["model", "embedding", "adapter"]
    base: str | None = None
    path: str | None = None
    parent: str | None = None
    is_promoted: bool = False
    metrics: dict[str, float] = {}
    card: JsonObject = {}
    created_at: float = 0.0


class Trained(Value):
    """A finished finetune. `losses` are (step, training loss) pairs in order."""

    version: ModelVersion
    losses: tuple[tuple[int, float], ...]
    eval_loss_before: float | None = None
    eval_loss_after: float | None = None
    seconds: float = 0.0
    tokens: int = 0


class Evaluated(Value):
    """Mean negative log-likelihood per target token on held-out rows, and its exponential."""

    loss: float
    perplexity: float
    rows: int
    tokens: int


class ModelVersions(Value):
    models: tuple[ModelVersion, ...]


class LabelScore(Value):
    """A label and its probability."""

    label: str
    probability: float


class Classified(Value):
    """The labels of each text, most likely first. `model` is the version that was asked.

    `tokens` were read.
    """

    labels: tuple[tuple[LabelScore, ...], ...]
    model: str
    tokens: int


class Entity(Value):
    """A run of words with one label: the characters from `start` up to `end` of the text.

    `first` and `last` are the places of its words. `score` is the mean probability of their tags.
    """

    text: str
    label: str
    start: int
    end: int
    first: int
    last: int
    score: float


class TaggedText(Value):
    """A text with its entities, and each word's tag with its probability.

    The text of words that were given as such is the words with a space between them.
    """

    text: str
    words: tuple[str, ...]
    tags: tuple[str, ...]
    scores: tuple[float, ...]
    entities: tuple[Entity, ...]


class Tagged(Value):
    """Texts with their entities, in order. `model` is the version that was asked."""

    texts: tuple[TaggedText, ...]
    model: str
    tokens: int
