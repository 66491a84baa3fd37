"""What the kernel needs to be told at boot; `llmos/config.py` fills it from the user's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from llmos.drivers.chat_model import ChatModel
from llmos.drivers.contract import CrossEncoder, EmbeddingModel, LanguageModel
from llmos.drivers.labeller import Labeller
from llmos.kernel.adapter_slots import AdapterLimits
from llmos.kernel.budget import Prices
from llmos.kernel.consolidation import ConsolidationSetting
from llmos.kernel.kv_domain import Sharing
from llmos.kernel.planner import Limits
from llmos.kernel.policy import PolicySettings
from llmos.memory.vector_model import VectorModel
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.learning import GateCheck
from llmos.syscalls.rights import Quota

ANY = "any"  # the class of all configured models


@dataclass(frozen=True, slots=True)
class RemoteSetting:
    """How a model on another machine is reached, how much at once, and at what cost."""

    connect: Callable[[], ChatModel]
    concurrency: int = 8
    prices: Prices | None = None


@dataclass(frozen=True, slots=True)
class ModelSetting:
    """A model that agents can name.

    `base` is the weights' name: adapters belong to a base, and models of one base stand in for each
    other. `weights` finds the file to train on; None where there is none. `open` gives a model of
    this machine, `remote` reaches one elsewhere; one of the two is there.
    """

    name: str
    base: str
    driver: str
    open: Callable[[], LanguageModel] | None = None
    open_draft: Callable[[], LanguageModel] | None = None  # a small one that guesses for it
    weights: Callable[[], Path] | None = None
    processor: str = "cpu"  # devices on one processor slow each other
    remote: RemoteSetting | None = None
    open_at: Callable[[Path], LanguageModel] | None = None  # with other weights of its form


@dataclass(frozen=True, slots=True)
class EmbeddingSetting:
    """The embedding model. `identify` names what it computes before it is opened, and `reopen`
    opens one that the store's vectors were made with, or says why it cannot.

    `dimensions` is a function where it is read from the model's files. Computed vectors are kept:
    `cache_bytes` of them in memory, `cache_disk_bytes` on disk (0: none).
    """

    name: str
    dimensions: int | Callable[[], int]
    open: Callable[[], EmbeddingModel]
    identify: Callable[[], VectorModel] | None = None
    reopen: Callable[[VectorModel], EmbeddingModel] | None = None
    cache_bytes: int = 64 * 2**20
    cache_disk_bytes: int = 0
    weights: Callable[[], Path] | None = None  # its folder, to train on; None: it has none

    def width(self) -> int:
        """Numbers of one vector; may read a file. Raises: SyscallError."""
        return self.dimensions if isinstance(self.dimensions, int) else self.dimensions()

    def identity(self) -> VectorModel:
        """What the model computes; may read its files. Raises: SyscallError."""
        if self.identify is None:
            return VectorModel(identity=self.name, source=self.name)
        return self.identify()

    def identity_text(self) -> str | None:
        """`identity` as the store keeps it; None while the model is not on this machine."""
        try:
            return self.identity().text
        except SyscallError:
            return None


@dataclass(frozen=True, slots=True)
class RerankerSetting:
    """The cross-encoder that orders the best hits of a search where that is asked for."""

    name: str
    open: Callable[[], CrossEncoder]


@dataclass(frozen=True, slots=True)
class TaskSetting:
    """How task models are opened, and how much memory all that are loaded may take together.

    `open` is given a version's folder and the name of the encoder that it was trained from.
    """

    open: Callable[[Path, str | None], Labeller]
    memory_bytes: int = 512 * 2**20


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
    # names that stand for any of several models; `any`, for all, is built in
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    embedding: EmbeddingSetting | None = None
    reranker: RerankerSetting | None = None
    tasks: TaskSetting | None = None
    adapters: AdapterLimits | None = None  # of each device; None: the default ones
    consolidation: ConsolidationSetting | None = None
    kv: KVSettings = KVSettings()
    # checks before a promotion, by the slot; those of "*" are for every slot
    gates: dict[str, tuple[GateCheck, ...]] = field(
        default_factory=dict[str, tuple[GateCheck, ...]]
    )
    policy: str = "priority"
    scheduling: PolicySettings = field(default_factory=PolicySettings)
    limits: Limits = field(default_factory=Limits)
    # the fair policy's shares of clients that get another than 1
    weights: dict[str, float] = field(default_factory=dict[str, float])
    mailbox_messages: int = 256
    pipe_bytes: int = 65_536
    console_bytes: int = 1_048_576
    trace_events: int = 200_000
    redactor: str | None = None  # module:name of what finds personal data in training rows
    private_notes_days: float = 90.0  # how long what ended processes left is kept
    max_processes: int = 100_000
    max_queued: int = 10_000
    quota: Quota = field(default_factory=Quota)
