"""What the calls about models return.

Losses are in nats per target token.
"""

from __future__ import annotations

from typing import Literal

from llmos.syscalls.values import JsonObject, Value

VersionKind = Literal["model", "embedding", "adapter", "task", "full", "prompt"]


class ModelVersion(Value):
    """An entry of the model registry, or a configured model.

    kind       what `path` is
    model      a configured language model
    embedding  the configured embedding model
    adapter    a folder as peft writes it, for the decoder `base`
    task       a folder with a head for labels, on the encoder `base`
    full       a folder with all weights of a decoder that began as `base`
    prompt     nothing: the card says how the base is prompted

    `slot` is the name that it serves under once promoted. `data_hashes` are by what the data was
    for ("train", "test"), `digest` is over all files, empty where there are none. A version that
    `is_pinned` is not deleted.
    """

    name: str
    kind: VersionKind
    base: str | None = None
    path: str | None = None
    parent: str | None = None
    is_promoted: bool = False
    metrics: dict[str, float] = {}
    card: JsonObject = {}
    created_at: float = 0.0
    slot: str | None = None
    size_bytes: int = 0
    licence: str | None = None
    data_hashes: dict[str, str] = {}
    digest: str = ""
    is_pinned: bool = False


class GateFigure(Value):
    """One check of a gate: what was measured, against what, and whether it holds.

    `current` is the version that serves now, None where it was not measured; `why` says what does
    not hold.
    """

    check: str
    metric: str
    value: float
    interval: tuple[float, float] | None = None
    current: float | None = None
    holds: bool = True
    why: str = ""
    is_safety: bool = False


class Decision(Value):
    """What was asked of the registry and answered: the audit of promotions and rollbacks.

    `before` served the slot, `name` does now if `is_allowed`; None is the base itself.
    """

    slot: str
    action: Literal["promote", "rollback", "delete"]
    name: str | None
    before: str | None
    is_allowed: bool
    is_forced: bool = False
    reason: str = ""
    figures: tuple[GateFigure, ...] = ()
    at: float = 0.0


class Exported(Value):
    """A model written for others: a folder of safetensors, or a GGUF file in `quantize` format."""

    path: str
    format: Literal["safetensors", "gguf"]
    quantize: str | None = None
    bytes: int


class Trained(Value):
    """A finished finetune. `losses` are (step, training loss) pairs in order."""

    version: ModelVersion
    losses: tuple[tuple[int, float], ...]
    eval_loss_before: float | None = None
    eval_loss_after: float | None = None
    seconds: float = 0.0
    tokens: int = 0


class ModelVersions(Value):
    """Versions; `decisions` are those about them, the newest first, where they were asked for."""

    models: tuple[ModelVersion, ...]
    decisions: tuple[Decision, ...] = ()


class Deleted(Value):
    """A version that is gone, and the bytes on disk that nothing else needed."""

    name: str
    freed_bytes: int


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
