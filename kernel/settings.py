"""What the kernel needs to be told at boot; `llmos/config.py` fills it from the user's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from llmos.drivers.contract import EmbeddingModel, LanguageModel
from llmos.kernel.kv_domain import Sharing
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
class KVSettings:
    """Where computed KV goes that a device has no room for, and who may reuse it.

    `host_bytes` is for each device; None: a tenth of the machine's memory. `disk_bytes` 0: nothing
    is written, and nothing is left for the next start.
    """

    host_bytes: int | None = None
    disk_bytes: int = 0
    sharing: Sharing = "lineage"


@dataclass(frozen=True, slots=True)
class Settings:
    home: Path
    models: dict[str, ModelSetting]
    default_model: str | None
    embedding: EmbeddingSetting | None = None
    kv: KVSettings = KVSettings()
    policy: str = "priority"
    scheduling: PolicySettings = field(default_factory=PolicySettings)
    mailbox_messages: int = 256
    pipe_bytes: int = 65_536
    console_bytes: int = 1_048_576
    trace_events: int = 200_000
    max_processes: int = 100_000
    max_queued: int = 10_000
    quota: Quota = field(default_factory=Quota)
