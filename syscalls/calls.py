"""The ABI: every syscall is one frozen value with one result type.

A call never carries its caller's pid: the kernel binds the handle that it hands out. The union is
closed: `kernel/dispatch.py` ends in `assert_never`. Adding a call means adding it here, there, in
the SDK handle and in docs/abi.md; tests say which one is missing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from llmos.syscalls import results as r
from llmos.syscalls.call import Call as Call
from llmos.syscalls.content import Message
from llmos.syscalls.evaluation import Evaluate, Search
from llmos.syscalls.learning import (
    Classify,
    Finetune,
    ModelDelete,
    ModelExport,
    ModelList,
    ModelPromote,
    ModelRollback,
    Tag,
)
from llmos.syscalls.learning import (
    Example as Example,
)
from llmos.syscalls.learning import (
    GateCheck as GateCheck,
)
from llmos.syscalls.options import GREEDY, Constraint, Sampling
from llmos.syscalls.rights import Capabilities, Quota
from llmos.syscalls.traces import Outcome, TraceConsent, TraceData
from llmos.syscalls.values import JsonObject, JsonValue, Value

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


# --- generate -------------------------------------------------------------------------------------


class Generate(Call[r.Generated]):
    """Continue a conversation.

    With `context`, the messages are appended to that context first and the answer after them (both
    are kept in it); without, the messages are the whole prompt. `model` None is the configured
    default. `tools` names kernel tools offered to the model, `tool_specs` describes tools of the
    caller's own; requests come back in the message, and kernel tools run by `ToolCall`. `prefix`
    starts the assistant's answer. `prompt` is a plain text to continue as it stands, without the
    model's chat template; it excludes messages, context, tools and prefix. After `deadline_s`
    seconds nobody waits for the answer any more: what is not done by then is dropped, and the call
    ends with "timeout".
    """

    op: Literal["generate"] = "generate"
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    context: int | None = None
    model: str | None = None
    adapter: str | None = None
    sampling: Sampling = GREEDY
    max_tokens: int = Field(default=256, ge=1)
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    constraint: Constraint | None = None
    tools: tuple[str, ...] = ()
    tool_specs: tuple[r.ToolSpec, ...] = ()
    prefix: str = ""
    deadline_s: float | None = Field(default=None, gt=0)


class Embed(Call[r.Embedded]):
    """Embed texts; an empty text is refused."""

    op: Literal["embed"] = "embed"
    texts: tuple[str, ...] = Field(min_length=1)
    model: str | None = None


class Tokenize(Call[r.Tokens]):
    """Count a text's tokens by a model's own tokenizer.

    The model `tiktoken` is none: it counts by a common vocabulary, without opening a model, for
    budgets that need not be exact.
    """

    op: Literal["tokenize"] = "tokenize"
    text: str
    model: str | None = None


# --- context --------------------------------------------------------------------------------------


class ContextOpen(Call[r.ContextRef]):
    """Open a context owned by the caller. `budget_tokens` None is the model's window.

    `policy` says what happens over budget: `window` lets the oldest exchanges go, `drop_results`
    drops old tool results and recalled material, `page_out` moves the oldest exchanges to the
    long-term store and recalls what fits a new question, `summary` has the model sum them up, and
    `default` drops what can be had again, then pages out and recalls. `recall_tokens` is the most
    that may be recalled for one question (None: an eighth of the budget; 0: nothing is). With
    `has_summary` what is paged out is also summed up by the model, on the caller's account.

    With a `namespace`, what leaves the window is remembered there, and everything that is known
    there may be recalled; without, the process's own is used, and only what left this context comes
    back. With `has_core` the window always shows the core memory of that namespace.
    """

    op: Literal["context_open"] = "context_open"
    messages: tuple[Message, ...] = ()
    model: str | None = None
    budget_tokens: int | None = Field(default=None, ge=16)
    policy: r.ContextPolicy = "default"
    recall_tokens: int | None = Field(default=None, ge=0)
    namespace: str | None = Field(default=None, min_length=1)
    has_core: bool = False
    has_summary: bool = False


class ContextAppend(Call[r.ContextInfo]):
    """Append messages; over budget the policy acts and `ContextStat` tells what it did."""

    op: Literal["context_append"] = "context_append"
    context: int
    messages: tuple[Message, ...] = Field(min_length=1)
    kind: r.SegmentKind | None = None


class ContextFork(Call[r.ContextRef]):
    """Copy a context; computed KV state is shared until one side changes."""

    op: Literal["context_fork"] = "context_fork"
    context: int


class ContextPin(Call[r.ContextInfo]):
    """Keep a segment in the window whatever the policy does, or release it."""

    op: Literal["context_pin"] = "context_pin"
    context: int
    segment: int
    is_pinned: bool = True


class ContextStat(Call[r.ContextInfo]):
    op: Literal["context_stat"] = "context_stat"
    context: int


class ContextSave(Call[r.ContextSaved]):
    """Keep a context on the disk, in place of another one of that name.

    It lasts beyond the process and the kernel. `namespace` None is the process's own, which no
    later process can name.
    """

    op: Literal["context_save"] = "context_save"
    context: int
    name: str = Field(pattern=_NAME)
    namespace: str | None = Field(default=None, min_length=1)


class ContextRestore(Call[r.ContextRef]):
    """Open a context as it was saved; its tokens are counted again with its model."""

    op: Literal["context_restore"] = "context_restore"
    name: str = Field(pattern=_NAME)
    namespace: str | None = Field(default=None, min_length=1)


class ContextDiff(Call[r.ContextDifference]):
    """Compare what two contexts of the caller show."""

    op: Literal["context_diff"] = "context_diff"
    context: int
    other: int


class CoreMemory(Call[r.CoreText]):
    """Read or edit core memory: a short text of a namespace that contexts always show.

    `replace` is a passage that stands there once, and `by` what takes its place; `append` adds a
    line. `namespace` None is the process's own. The caller's contexts show an edit when they next
    lose their prefix anyway: until then the exchange that made it is in the window, and computing
    the window again would cost most of a prefill. With `is_urgent` they show it at once.
    """

    op: Literal["core_memory"] = "core_memory"
    namespace: str | None = Field(default=None, min_length=1)
    append: str | None = Field(default=None, min_length=1)
    replace: str | None = Field(default=None, min_length=1)
    by: str = ""
    is_urgent: bool = False


class ContextClose(Call[r.Done]):
    op: Literal["context_close"] = "context_close"
    context: int


# --- memory ---------------------------------------------------------------------------------------


class Note(Value):
    """An item to remember. Times are seconds since the epoch.

    `kind`: `episodic` is what happened, `semantic` what is the case, `procedural` how something is
    done. A note with a `fact` is semantic. `importance` goes from 0 to 1: what is least important
    is forgotten first when it is not used, and what is 1 never is. `valid_from` is since when it
    has been so (None: a fact since it was remembered, everything else always), and `parent` the
    note of the same namespace of which this one is a part.
    """

    text: str = Field(min_length=1)
    metadata: JsonObject = {}
    source: str | None = None
    position: int | None = None
    expires_at: float | None = None
    kind: r.NoteKind = "episodic"
    importance: float = Field(default=0.5, ge=0, le=1)
    valid_from: float | None = None
    fact: r.Fact | None = None
    parent: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _facts_are_semantic(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("fact") is not None:  # pyright: ignore[reportUnknownMemberType]
            return {"kind": "semantic", **data}
        return data  # pyright: ignore[reportUnknownVariableType]

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.fact is not None and self.kind != "semantic":
            raise ValueError(f"a note with a fact is semantic, not {self.kind}")
        return self


class Remember(Call[r.Remembered]):
    """Store items; all or none. `namespace` None is the process's own.

    A fact that `is_single` supersedes what was known of its subject and relation: the older note is
    kept, is found only by `with_history` or at a time when it was valid, and is in `superseded`.

    A note whose text is nearly that of one in the namespace, of the same kind, is not stored again
    when their embeddings' cosine is `merge_above` or more and both have the same words in the same
    order, but for their forms; its id is then the old one's. None: 0.95 for semantic notes, never
    for others.

    `owner` is on whose behalf they are kept, by which `Forget` finds them: the client that the
    caller runs for; only whoever embeds the kernel names another.
    """

    op: Literal["remember"] = "remember"
    notes: tuple[Note, ...] = Field(min_length=1)
    namespace: str | None = None
    merge_above: float | None = Field(default=None, gt=0, le=1)
    owner: str | None = Field(default=None, min_length=1)


class Retrieve(Call[r.Hits]):
    """The k best items for a query, among those that pass every filter.

    Filters come before the k are chosen. `where` is metadata by field: a value to be equal to, or
    operators: `$eq`, `$ne`, `$gt`, `$gte`, `$lt`, `$lte`, `$in`, `$exists`, `$contains` (a part of
    a text, or an element of a list). A field that no note in the namespaces has is refused.
    `kinds` None is all. What is valid now is found, or what was valid `at` a time; `with_history`
    adds what was superseded or is not valid yet.

    Ranking: `recency_s` is the age in seconds at which a score has halved (None: age does not
    count). `diversity` from 0 to 1 takes hits that are unlike those before them (maximal marginal
    relevance). `rerank` orders the best by a model that reads query and text together, where one is
    configured.

    Context: `neighbours` of each hit before and after it in its source, with `with_parent` the note
    that it is a part of, and of a hit with a fact those within `hops` steps of its entities, ten at
    most, as the hit's `context`.
    """

    op: Literal["retrieve"] = "retrieve"
    query: str = Field(min_length=1)
    k: int = Field(default=5, ge=1, le=1000)
    mode: Literal["dense", "lexical", "hybrid"] = "hybrid"
    namespaces: tuple[str, ...] | None = None
    where: JsonObject = {}
    kinds: tuple[r.NoteKind, ...] | None = Field(default=None, min_length=1)
    at: float | None = None
    with_history: bool = False
    recency_s: float | None = Field(default=None, gt=0)
    diversity: float = Field(default=0.0, ge=0, le=1)
    rerank: bool = False
    neighbours: int = Field(default=0, ge=0, le=20)
    with_parent: bool = False
    hops: int = Field(default=0, ge=0, le=6)


class Related(Call[r.Facts]):
    """The facts about an entity and about those that they lead to, `hops` steps away at most.

    Subjects and objects are the same entity when they differ only in case and spaces. `at` and
    `with_history` are as in `Retrieve`; `namespaces` None is all that the caller may read. The
    nearest come first, `limit` of them at most.
    """

    op: Literal["related"] = "related"
    entity: str = Field(min_length=1)
    hops: int = Field(default=1, ge=1, le=6)
    namespaces: tuple[str, ...] | None = None
    at: float | None = None
    with_history: bool = False
    limit: int = Field(default=100, ge=1, le=10_000)


class Forget(Call[r.Forgotten]):
    """Delete the items that match every selector; no selector at all is refused.

    `where` is as in `Retrieve`. `everything` selects all of the namespace. `owner` selects what is
    kept on somebody's behalf; with it and without `namespace`, every namespace that the caller may
    write is looked through.
    """

    op: Literal["forget"] = "forget"
    ids: tuple[int, ...] = ()
    source: str | None = None
    where: JsonObject = {}
    namespace: str | None = None
    owner: str | None = Field(default=None, min_length=1)
    everything: bool = False


class Ingest(Call[r.Ingested]):
    """Take files and folders into a namespace, or bring what is known of them up to date.

    Text, Markdown, HTML, PDF, docx, CSV and source code are parsed and cut along their structure
    into notes of `chunk_tokens` tokens at most (None: what suits the embedding model). A note has
    its file's absolute path as `source`, its place among the file's notes as `position`, and in its
    metadata `format`, `section`, and `line`, `page`, `row` or `paragraph`.

    A file that has not changed is not read again, and of one that has, only new text is embedded.
    Hidden files and links are left out. `forget_gone` forgets what is known of files below `paths`
    that are not there any more. `encoding` is that of text which is not UTF-8 and does not say so.
    A file that cannot be taken in is in the result, and the others are taken in all the same.
    """

    op: Literal["ingest"] = "ingest"
    paths: tuple[str, ...] = Field(min_length=1)
    namespace: str | None = None
    chunk_tokens: int | None = Field(default=None, ge=16)
    encoding: str | None = None
    max_file_bytes: int = Field(default=32 * 1024 * 1024, ge=1)
    forget_gone: bool = False


class MemoryStat(Call[r.MemoryInfo]):
    op: Literal["memory_stat"] = "memory_stat"


# --- tools ----------------------------------------------------------------------------------------


class ToolCall(Call[r.ToolOutput]):
    """Run a tool with validated arguments, within its time and output limits."""

    op: Literal["tool_call"] = "tool_call"
    name: str
    arguments: JsonObject = {}
    timeout_s: float | None = Field(default=None, gt=0)


class ToolList(Call[r.ToolSpecs]):
    """The tools that the caller may use."""

    op: Literal["tool_list"] = "tool_list"


# --- process --------------------------------------------------------------------------------------

SignalName = Literal["STOP", "CONT", "TERM", "KILL"]


class Spawn(Call[r.Spawned]):
    """Start a child. `program` is a registered name or `module:function`.

    `capabilities` None is a copy of the caller's; a grant that the caller lacks is refused.
    `stdin_from` is a process whose standard output feeds the child's standard input;
    `is_interactive` leaves standard input open for whoever embeds the kernel. With neither, it is
    at its end from the start.

    `client` is on whose behalf the child runs, who gets a fair share under that policy; a child
    inherits it, and only whoever embeds the kernel names it. `path_s` is how long the work that
    hangs on the child is expected to go on, for the policy `critical_path`.
    """

    op: Literal["spawn"] = "spawn"
    program: str
    args: tuple[JsonValue, ...] = ()
    kwargs: JsonObject = {}
    capabilities: Capabilities | None = None
    quota: Quota = Quota()
    nice: int | None = Field(default=None, ge=-20, le=19)
    stdin_from: int | None = None
    is_interactive: bool = False
    client: str | None = None
    path_s: float = Field(default=0.0, ge=0)
    isolation: Literal["task", "process"] = "task"


class Fork(Call[r.Spawned]):
    """Start a child that holds copy-on-write forks of the caller's contexts.

    The child's program is called with the keyword `contexts`: the ids of its copies, in the order
    of `contexts` here.
    """

    op: Literal["fork"] = "fork"
    program: str
    contexts: tuple[int, ...] = Field(min_length=1)
    args: tuple[JsonValue, ...] = ()
    kwargs: JsonObject = {}
    capabilities: Capabilities | None = None
    quota: Quota = Quota()
    nice: int | None = Field(default=None, ge=-20, le=19)


class GraphNode(Value):
    """A node of a task graph. The values of `after` reach the program as keyword `inputs`.

    `expected_s` is about how long it takes, next to the others: under the policy `critical_path`
    the nodes with the longest way to the end come first.
    """

    name: str = Field(min_length=1)
    program: str
    args: tuple[JsonValue, ...] = ()
    kwargs: JsonObject = {}
    after: tuple[str, ...] = ()
    retries: int = Field(default=0, ge=0, le=100)
    timeout_s: float | None = Field(default=None, gt=0)
    on_failure: Literal["propagate", "tolerate"] = "propagate"
    expected_s: float = Field(default=1.0, gt=0)


class SpawnGraph(Call[r.Spawned]):
    """Run a DAG of programs as a job; `Wait` on the pid gives a `GraphOutcome` as value."""

    op: Literal["spawn_graph"] = "spawn_graph"
    nodes: tuple[GraphNode, ...] = Field(min_length=1)
    max_parallel: int | None = Field(default=None, ge=1)


class Wait(Call[r.Exited]):
    """Wait for a child to end and reap it; `pid` None is whichever child ends first."""

    op: Literal["wait"] = "wait"
    pid: int | None = None
    timeout_s: float | None = Field(default=None, ge=0)


class Signal(Call[r.Done]):
    """Signal a child (or any process, with the capability). TERM's `deadline_s` then kills."""

    op: Literal["signal"] = "signal"
    pid: int
    signal: SignalName
    deadline_s: float = Field(default=5.0, ge=0)


class Nice(Call[r.Done]):
    """Set a priority, -20 (first) to 19 (last); `pid` None is the caller.

    Below the caller's own `nice`, and below what the process has, it takes the capability
    `raise_priority`.
    """

    op: Literal["nice"] = "nice"
    nice: int = Field(ge=-20, le=19)
    pid: int | None = None


class Sleep(Call[r.Done]):
    op: Literal["sleep"] = "sleep"
    seconds: float = Field(ge=0)


class Exit(Call[r.Done]):
    """End the caller with a value; does not return."""

    op: Literal["exit"] = "exit"
    value: JsonValue = None


class Ps(Call[r.Processes]):
    """Processes that the caller may see: itself and its descendants, or all with the capability."""

    op: Literal["ps"] = "ps"


# --- ipc ------------------------------------------------------------------------------------------


class Send(Call[r.Sent]):
    """Put a message into a mailbox; a full one makes the sender wait, or is refused."""

    op: Literal["send"] = "send"
    to: int
    body: JsonValue
    on_full: Literal["wait", "refuse"] = "wait"


class Receive(Call[r.Mail]):
    """Take the oldest message, from one sender or topic where given."""

    op: Literal["receive"] = "receive"
    sender: int | None = None
    topic: str | None = None
    timeout_s: float | None = Field(default=None, ge=0)


class Publish(Call[r.Sent]):
    """Send to all subscribers of a topic; full mailboxes lose it, and the count is returned."""

    op: Literal["publish"] = "publish"
    topic: str = Field(min_length=1)
    body: JsonValue


class Subscribe(Call[r.Done]):
    op: Literal["subscribe"] = "subscribe"
    topic: str = Field(min_length=1)
    is_on: bool = True


# --- files ----------------------------------------------------------------------------------------


class Open(Call[r.Opened]):
    """Open a file: relative to the process's home, or absolute in a shared folder."""

    op: Literal["open"] = "open"
    path: str = Field(min_length=1)
    mode: Literal["r", "w", "a"] = "r"


class Read(Call[r.Data]):
    """Read from a descriptor; 0 is standard input. Waits until there is something."""

    op: Literal["read"] = "read"
    fd: int = 0
    max_bytes: int = Field(default=65536, ge=1, le=16 * 1024 * 1024)


class Write(Call[r.Written]):
    """Write to a descriptor; 1 is standard output. Waits while a connected pipe is full."""

    op: Literal["write"] = "write"
    fd: int = 1
    data: bytes


class Close(Call[r.Done]):
    op: Literal["close"] = "close"
    fd: int


class List(Call[r.Files]):
    """The entries of a folder, one level deep, or all files below it."""

    op: Literal["list"] = "list"
    path: str = "."
    is_recursive: bool = False


# --- observe --------------------------------------------------------------------------------------


class Trace(Call[r.TraceEvents]):
    """The newest trace events of a process, or of all that the caller may see."""

    op: Literal["trace"] = "trace"
    pid: int | None = None
    limit: int = Field(default=1000, ge=1, le=1_000_000)


class Stat(Call[r.KernelInfo]):
    op: Literal["stat"] = "stat"


Syscall = (
    Generate
    | Embed
    | Tokenize
    | ContextOpen
    | ContextAppend
    | ContextFork
    | ContextPin
    | ContextStat
    | ContextSave
    | ContextRestore
    | ContextDiff
    | CoreMemory
    | ContextClose
    | Remember
    | Retrieve
    | Related
    | Ingest
    | Forget
    | MemoryStat
    | ToolCall
    | ToolList
    | Finetune
    | Evaluate
    | Search
    | ModelList
    | ModelPromote
    | ModelRollback
    | ModelDelete
    | ModelExport
    | TraceConsent
    | Outcome
    | TraceData
    | Classify
    | Tag
    | Spawn
    | Fork
    | SpawnGraph
    | Wait
    | Signal
    | Nice
    | Sleep
    | Exit
    | Ps
    | Send
    | Receive
    | Publish
    | Subscribe
    | Open
    | Read
    | Write
    | Close
    | List
    | Trace
    | Stat
)

AnySyscall = Annotated[Syscall, Field(discriminator="op")]
