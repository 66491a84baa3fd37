"""What syscalls return. One result type per call; `calls.py` says which.

Times are seconds, sizes are bytes, token counts are by the model's own tokenizer.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmos.syscalls.content import Message
from llmos.syscalls.errors import ErrorValue
from llmos.syscalls.evaluation_results import Evaluated as Evaluated
from llmos.syscalls.learning_results import Decision as Decision
from llmos.syscalls.learning_results import Deleted as Deleted
from llmos.syscalls.learning_results import Exported as Exported
from llmos.syscalls.learning_results import GateFigure as GateFigure
from llmos.syscalls.learning_results import ModelVersion as ModelVersion
from llmos.syscalls.learning_results import ModelVersions as ModelVersions
from llmos.syscalls.learning_results import Trained as Trained
from llmos.syscalls.rights import Capabilities, Quota
from llmos.syscalls.values import JsonObject, JsonValue, Value

# --- generate -------------------------------------------------------------------------------------

FinishReason = Literal["stop", "length", "tool_requests", "context_full", "quota"]


class Usage(Value):
    """Where tokens and time of one generation went. `cached_tokens` were not prefilled again."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queued_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class TokenChoice(Value):
    """A token with its natural-log probability before temperature and penalties."""

    token_id: int
    text: str
    logprob: float


class TokenLogprob(TokenChoice):
    """A token that was generated; `top` are the most likely ones in its place, best first."""

    top: tuple[TokenChoice, ...] = ()


class Generated(Value):
    """A finished generation. `message` holds text and tool requests as the model wrote them."""

    message: Message
    finish: FinishReason
    usage: Usage
    model: str
    device: str
    adapter: str | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def text(self) -> str:
        """The text of the message."""
        return self.message.text


class Delta(Value):
    """A piece of a streamed generation; whole UTF-8 characters only."""

    text: str


class Embedded(Value):
    """One unit-length vector per text, in order; `dimensions` floats each."""

    vectors: tuple[tuple[float, ...], ...]
    model: str
    dimensions: int
    tokens: int


class Tokens(Value):
    """Token ids of a text, and whether the count is exact for the model that was named."""

    ids: tuple[int, ...]
    count: int
    is_exact: bool
    tokenizer: str


# --- context --------------------------------------------------------------------------------------

SegmentKind = Literal["system", "core", "pinned", "dialogue", "tool_result", "recalled", "summary"]


ContextPolicy = Literal["default", "window", "drop_results", "page_out", "summary"]


class ContextRef(Value):
    context: int


class SegmentInfo(Value):
    """One segment of a context; `state` tells whether the model still sees it, and `reason` why.

    `notes` are the ids that it has in the long-term store: those that it was paged out as, or of
    recalled material those that it shows.
    """

    index: int
    kind: SegmentKind
    tokens: int
    state: Literal["in_window", "dropped", "paged_out", "summarised"]
    preview: str
    notes: tuple[int, ...] = ()
    reason: str | None = None


class Composition(Value):
    """What a window was made of after its segment `newest` came.

    `recomputed_tokens` stand behind the first change of what was there before: their KV is computed
    again.
    """

    newest: int
    tokens: dict[SegmentKind, int]
    recomputed_tokens: int = 0


class ContextInfo(Value):
    """What the model sees of a context, and what was done to keep it within budget.

    `history` is the window's composition after each of the newest appends, oldest first.
    """

    context: int
    model: str
    budget_tokens: int
    used_tokens: int
    segments: tuple[SegmentInfo, ...]
    actions: tuple[str, ...]
    policy: ContextPolicy = "default"
    history: tuple[Composition, ...] = ()


class ContextSaved(Value):
    """A context that was saved: what it is restored by, and its size on the disk."""

    name: str
    namespace: str
    bytes: int


class ContextDifference(Value):
    """How two windows differ: what they begin with alike, and what only one of them shows.

    `shared_tokens` of the rendered windows are equal from the start, so their KV is shared.
    """

    shared_segments: int
    shared_tokens: int
    only_left: tuple[SegmentInfo, ...]
    only_right: tuple[SegmentInfo, ...]


class CoreText(Value):
    """Core memory as it is now, and the most characters that it may have."""

    text: str
    limit_chars: int


# --- memory ---------------------------------------------------------------------------------------


NoteKind = Literal["episodic", "semantic", "procedural"]


class Fact(Value):
    """What is so between two things. `is_single`: a subject has one such object at a time."""

    subject: str = Field(min_length=1, max_length=1000)
    relation: str = Field(min_length=1, max_length=1000)
    object: str = Field(min_length=1, max_length=1000)
    is_single: bool = True


class Remembered(Value):
    """`ids` are in the notes' order; `duplicates` of them were there already.

    `superseded` are older notes whose facts these contradict: kept, and no longer current.
    """

    ids: tuple[int, ...]
    duplicates: int = 0
    superseded: tuple[int, ...] = ()


class Passage(Value):
    """A note around a hit: the one that it is a part of, one beside it, or one with a related fact.

    `place` is 0 for a parent, -1 for the note just before in the same source and 1 for the one just
    after, and for a related fact how many steps away it is.
    """

    id: int
    how: Literal["parent", "beside", "related"]
    place: int
    text: str
    position: int | None = None


class Hit(Value):
    """One retrieved item. `score` orders the hits; `parts` says what it is made of.

    It was so from `valid_from` to `valid_to` (None: it still is); `superseded_by` is the note that
    ended it. `context` is what was asked for around it: the parent, what is beside it in order,
    related facts, the nearest first.
    """

    id: int
    text: str
    namespace: str
    score: float
    parts: dict[str, float]
    metadata: JsonObject
    source: str | None = None
    position: int | None = None
    created_at: float
    kind: NoteKind = "episodic"
    importance: float = 0.5
    valid_from: float | None = None
    valid_to: float | None = None
    superseded_by: int | None = None
    parent: int | None = None
    context: tuple[Passage, ...] = ()


class Hits(Value):
    hits: tuple[Hit, ...]


class RelatedFact(Value):
    """A fact, the note that says it, and how many steps it is from the entity that was asked for.

    Times and `superseded_by` are as in `Hit`.
    """

    note: int
    namespace: str
    subject: str
    relation: str
    object: str
    hops: int
    text: str
    valid_from: float | None = None
    valid_to: float | None = None
    superseded_by: int | None = None


class Facts(Value):
    """`is_cut` when there were more than the limit."""

    facts: tuple[RelatedFact, ...]
    is_cut: bool = False


class Forgotten(Value):
    count: int


FileProblemKind = Literal[
    "binary", "damaged", "empty", "encoding", "encrypted", "too_large", "unreadable"
]


class FileProblem(Value):
    """A file that was not taken in; the message says what can be done about it."""

    path: str
    problem: FileProblemKind
    message: str


class Ingested(Value):
    """What came of files: each is new, changed, unchanged, refused or gone.

    `refused` counts them all, `problems` lists the first of them. `gone` were taken in before and
    are not there any more. `notes` were stored, `reused` of them with the vector that the same text
    had before; `forgotten` notes were of what has changed or gone.
    """

    namespace: str
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    refused: int = 0
    gone: int = 0
    notes: int = 0
    reused: int = 0
    forgotten: int = 0
    bytes: int = 0
    problems: tuple[FileProblem, ...] = ()


class NamespaceStat(Value):
    namespace: str
    items: int


class MemoryInfo(Value):
    """What the store holds in what the caller may read, and its sizes as a whole.

    `index` is `flat` (exact) or `ivf` (lists by nearness). `index_recall` is the share of the true
    ten nearest that it found for `recall_sample` of the vectors when it was built; a flat index
    finds all. `is_building` tells that a better index is being built, while the old one is used.
    """

    items: int
    dimensions: int
    index: str
    index_bytes: int
    index_recall: float = 1.0
    recall_sample: int = 0
    is_building: bool = False
    database_bytes: int
    namespaces: tuple[NamespaceStat, ...]


# --- tools ----------------------------------------------------------------------------------------


class ToolSpec(Value):
    """A tool as a model sees it: name, one-line purpose, JSON Schema of its arguments."""

    name: str
    description: str
    parameters: JsonObject


class ToolOutput(Value):
    """What a tool returned, as text for a model and as a value; `is_truncated` when it was cut."""

    text: str
    value: JsonValue = None
    is_truncated: bool = False
    seconds: float = 0.0


class ToolSpecs(Value):
    tools: tuple[ToolSpec, ...]


# --- process --------------------------------------------------------------------------------------

ProcessState = Literal[
    "new",
    "ready",
    "running",
    "waiting_device",
    "waiting_tool",
    "waiting_ipc",
    "waiting_child",
    "sleeping",
    "stopped",
    "zombie",
    "dead",
]


class Spawned(Value):
    pid: int


class Exited(Value):
    """How a process ended: its return value, or the error or signal that ended it."""

    pid: int
    program: str
    status: Literal["ok", "error", "killed"]
    value: JsonValue = None
    error: ErrorValue | None = None
    signal: str | None = None

    def unwrap(self) -> JsonValue:
        """The value; raises `SyscallError` when the process did not end well."""
        from llmos.syscalls.errors import SyscallError

        if self.status == "ok":
            return self.value
        if self.error is not None:
            raise SyscallError.from_value(self.error)
        raise SyscallError(
            "failed",
            f"process {self.pid} ({self.program}) was killed by {self.signal}",
            pid=self.pid,
        )


class Accounting(Value):
    """What a process has used so far, its ended children not included."""

    syscalls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    queued_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tool_s: float = 0.0
    kv_byte_s: float = 0.0
    kv_bytes: int = 0
    children: int = 0


class ProcessInfo(Value):
    """A row of `ps`."""

    pid: int
    parent: int
    program: str
    args: str
    state: ProcessState
    waiting_on: str | None
    nice: int
    age_s: float
    contexts: tuple[int, ...]
    accounting: Accounting
    capabilities: Capabilities
    quota: Quota


class Processes(Value):
    processes: tuple[ProcessInfo, ...]


class NodeOutcome(Value):
    """How one node of a task graph ended."""

    node: str
    status: Literal["ok", "error", "skipped", "timeout"]
    value: JsonValue = None
    error: ErrorValue | None = None
    attempts: int = 0
    started_s: float | None = None
    ended_s: float | None = None


class GraphOutcome(Value):
    """How a task graph ended; times are seconds since its start."""

    status: Literal["ok", "failed"]
    nodes: dict[str, NodeOutcome]
    critical_path: tuple[str, ...]
    seconds: float


# --- ipc and files --------------------------------------------------------------------------------


class Sent(Value):
    """`receivers` is how many mailboxes took the message; `dropped` how many were full."""

    receivers: int
    dropped: int = 0


class Mail(Value):
    """A message from another process."""

    sender: int
    body: JsonValue
    topic: str | None = None


class Opened(Value):
    fd: int


class Data(Value):
    """Bytes read; `is_eof` when no more will come."""

    data: bytes
    is_eof: bool

    @property
    def text(self) -> str:
        """The bytes as UTF-8, each undecodable one shown as U+FFFD."""
        return self.data.decode("utf-8", errors="replace")


class Written(Value):
    bytes: int


class FileInfo(Value):
    path: str
    is_folder: bool
    bytes: int


class Files(Value):
    files: tuple[FileInfo, ...]


# --- observe --------------------------------------------------------------------------------------


class TraceEvent(Value):
    """One event; `ts_us` is microseconds since boot, `phase` as in the Chrome trace format."""

    name: str
    category: str
    phase: Literal["X", "i", "C"]
    ts_us: float
    dur_us: float = 0.0
    pid: int
    track: str = ""
    args: JsonObject = {}


class TraceEvents(Value):
    events: tuple[TraceEvent, ...]
    dropped: int = 0


class LedgerEntry(Value):
    """One large allocation and its owner."""

    owner: str
    what: str
    bytes: int


class DeviceInfo(Value):
    """A device as the kernel sees it. Rates are None until measured."""

    name: str
    driver: str
    model: str
    state: Literal["closed", "opening", "ready", "down"]
    reason: str | None = None
    sequences: int = 0
    running: int = 0
    waiting: int = 0
    cached_sequences: int = 0
    kv_tokens_used: int = 0
    kv_tokens_total: int = 0
    kv_layout: str | None = None  # how the device keeps KV, where it has a choice
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    steps: int = 0
    shared_tokens: int = 0
    draft: str | None = None  # the draft model, and how many of its guesses were kept
    spent_tokens: int | None = None  # a remote device with prices or a budget
    spent: float | None = None


class KernelInfo(Value):
    uptime_s: float
    processes: dict[str, int]
    policy: str
    devices: tuple[DeviceInfo, ...]
    ledger: tuple[LedgerEntry, ...]
    resident_bytes: int
    programs: dict[str, Accounting]


class Done(Value):
    """The call took effect and has nothing else to say."""
