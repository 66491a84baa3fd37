"""What the kernel needs to be told at boot; `llmos/config.py` fills it from the user's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from llmos.drivers.contract import EmbeddingModel, LanguageModel
from llmos.kernel.policy import PolicySettings
from llmos.syscalls.rights import Quota


@dataclass(frozen=True, slots=True)
class ModelSetting:
    """A model that agents can name.

    `base` is the weights' name: adapters belong to a base. `weights` finds the file to train on;
    None where there is none.
    """

    name: str
    base: str
    driver: str
    open: Callable[[], LanguageModel]
    weights: Callable[[], Path] | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingSetting:
    name: str
    dimensions: int
    open: Callable[[], EmbeddingModel]


@dataclass(frozen=True, slots=True)
class Settings:
    home: Path
    models: dict[str, ModelSetting]
    default_model: str | None
    embedding: EmbeddingSetting | None = None
    policy: str = "priority"
    scheduling: PolicySettings = field(default_factory=PolicySettings)
    mailbox_messages: int = 256
    pipe_bytes: int = 65_536
    console_bytes: int = 1_048_576
    trace_events: int = 200_000
    max_processes: int = 100_000
    max_queued: int = 10_000
    quota: Quota = field(default_factory=Quota)
