"""What a device driver must do. One contract suite (tests/drivers) runs against all drivers.

A driver owns one device's tensors: weights, KV cache, adapters. It knows tokens, sequences and
sampling; it refuses to know processes, priorities and prompts' meaning. All methods but `tokenize`,
`detokenize`, `piece` and `render` run on one thread: the device's engine thread.

Iteration-level batching (Orca, OSDI'22): a step feeds a few tokens to each of many sequences; a
sequence whose feed ends its known tokens asks for the next token to be sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from llmos.syscalls.content import Message
from llmos.syscalls.errors import LlmosError
from llmos.syscalls.options import Constraint, Sampling
from llmos.syscalls.results import ToolSpec

SequenceId = int
KVLayout = Literal["auto", "streams", "unified"]
KVType = Literal["f16", "q8_0"]

# Draft tokens of one step, of all sequences together: drivers keep room for so many rows of logits.
MOST_DRAFT_TOKENS = 32


class DeviceError(LlmosError):
    """A device failed; `__cause__` holds the foreign exception.

    `is_fatal` tells that the driver's state is lost and it must be reopened.
    """

    def __init__(self, message: str, *, is_fatal: bool = False) -> None:
        super().__init__(message)
        self.is_fatal = is_fatal

    def __reduce__(self) -> tuple[object, ...]:
        return (_device_error, (str(self), self.is_fatal))


class RequestError(DeviceError):
    """What was asked does not fit the model, and the device is well; `field` is what to change."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field

    def __reduce__(self) -> tuple[object, ...]:
        return (_request_error, (str(self), self.field))


def _device_error(message: str, is_fatal: bool) -> DeviceError:
    return DeviceError(message, is_fatal=is_fatal)


def _request_error(message: str, field: str) -> RequestError:
    return RequestError(message, field=field)


class SequenceError(DeviceError):
    """One sequence of a step cannot go on; the step without it can be tried again."""

    def __init__(self, message: str, sequence: SequenceId) -> None:
        super().__init__(message)
        self.sequence = sequence

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (str(self), self.sequence))


@dataclass(frozen=True, slots=True)
class Available:
    """What a probe found: usable or not, why not, and how much memory the device has."""

    driver: str
    device: str  # "cpu", "cuda:0", ...
    is_available: bool
    reason: str | None = None
    memory_bytes: int | None = None
    details: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What to open, with sizes that the driver must keep to."""

    name: str
    path: Path
    context_tokens: int = 4096  # capacity of one sequence
    sequences: int = 16  # sequences that can hold KV at once
    batch_tokens: int = 512  # most tokens of one step
    threads: int | None = None  # None: all cores of this process's affinity mask
    device: str = "cpu"  # torch device string; llama_cpp: "cpu"
    dtype: str = "auto"
    # llama_cpp: one stream of KV a sequence, or one buffer that all share and in which forks cost
    # nothing; `auto` is the driver's choice
    kv_layout: KVLayout = "auto"
    kv_cells: int | None = None  # tokens of the unified buffer; None: as many as fit, up to all
    kv_type: KVType = "f16"  # llama_cpp: the number format of KV
    flash_attention: bool | None = None  # llama_cpp; None: where the library thinks it pays
    micro_batch_tokens: int | None = None  # llama_cpp: tokens of one pass; None: `batch_tokens`
    query_prefix: str | None = None  # embedding; None: what the model's files say
    document_prefix: str | None = None


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a driver can do; the kernel degrades by it and says so."""

    can_fork: bool = True
    can_trim: bool = True
    can_save: bool = True
    can_constrain: bool = True
    can_attach: bool = True
    can_mix_adapters: bool = False  # sequences with different adapters in one step
    can_verify: bool = False  # feeds may carry a draft
    is_deterministic: bool = True
    counts_exactly: bool = True  # `tokenize` and `render` are by the model's own vocabulary


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as opened."""

    name: str
    driver: str
    device: str
    architecture: str
    parameters: int
    vocabulary: int
    context_tokens: int
    sequences: int
    batch_tokens: int
    kv_bytes_per_token: int
    end_tokens: frozenset[int]
    weights_format: str
    abilities: Abilities
    # One buffer of this many tokens that all sequences draw from and in which forks share; None:
    # each sequence has `context_tokens` of its own, and a fork is a copy sooner or later.
    kv_cells: int | None = None
    kv_layout: str | None = None  # what was chosen, in words, for whoever looks at the device


class Allocation(NamedTuple):
    """A large allocation that the driver holds, for the memory ledger."""

    what: str  # "weights", "kv_cache", "compute", "adapter NAME"
    bytes: int


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens for one sequence in one step. `sample` asks for the token after the last of them.

    `draft` guesses at what follows, for a driver that `can_verify`; it needs `sample`. The driver
    computes the guesses along with the tokens and keeps those that it would have sampled.
    """

    sequence: SequenceId
    tokens: Sequence[int]
    sample: bool
    draft: Sequence[int] = ()


class Sampled(NamedTuple):
    """The token chosen for a sequence.

    `logprob` and `top` are of the raw distribution, before penalties and temperature, and are
    given when the sequence's sampling asks for logprobs. `is_end` when the token ends generation:
    an end-of-generation token, or a constraint that is complete; such a token carries no text.
    `forced` are the tokens that the constraint makes certain to follow this one: they are part of
    the output, count as generated, and are to be fed with it. When nothing can follow them, the
    last of them is an end token, which ends generation as a sampled one does. None are given with
    logprobs.
    """

    sequence: SequenceId
    token: int
    is_end: bool
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    forced: tuple[int, ...] = ()


class LanguageModel(Protocol):
    """An open language model. Sampling and constraint state belong to the sequence."""

    @property
    def info(self) -> ModelInfo: ...

    # --- any thread ---

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text without BOS; `special` reads markup such as <|im_end|> as one."""
        ...

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """The bytes of the tokens; special tokens render as nothing."""
        ...

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[ToolSpec] = (), prefix: str = ""
    ) -> list[int]:
        """Token ids of a conversation by the model's chat template, ready for the answer.

        Appending messages appends tokens: the ids of a shorter conversation, up to its last
        message's end, begin those of a longer one (chat templates that keep this allow KV reuse).
        """
        ...

    # --- engine thread ---

    def add(
        self,
        sequence: SequenceId,
        *,
        sampling: Sampling,
        constraint: Constraint | None = None,
        prompt: Sequence[int] = (),
        generated: Sequence[int] = (),
        adapter: str | None = None,
    ) -> None:
        """Give a sequence, empty or with KV from `fork` or earlier use, its sampling state.

        Ids are 0 <= sequence < info.sequences. `prompt` seeds the penalty window. `generated` are
        tokens sampled before a preemption: the random stream, the penalties and the constraint
        continue after them as if nothing had happened (so a random draw is a function of the seed
        and the number of tokens generated). Raises: RequestError for a constraint that
        does not compile or a bias for no token, DeviceError for an adapter not attached.
        """
        ...

    def step(self, feeds: Sequence[Feed]) -> list[Sampled]:
        """Run one iteration: append each feed's tokens to its KV and sample where asked.

        At most one feed a sequence, at most `info.batch_tokens` tokens in all, drafts included and
        MOST_DRAFT_TOKENS of them, all sequences on one adapter unless `can_mix_adapters`. A sampled
        token is not in KV until it is fed.

        A feed with a draft gives one `Sampled` for each guess that was right, and one more, in
        order: what sampling token by token would have given, by the same random draws. The right
        guesses are then in KV, the rest is not; an end token, or one that forces others, is the
        last.
        Raises: DeviceError; unless it is fatal, no sequence's KV has changed.
        """
        ...

    def length(self, sequence: SequenceId) -> int:
        """Tokens that the sequence holds in KV."""
        ...

    def fork(self, source: SequenceId, target: SequenceId, tokens: int) -> None:
        """Make `target`, empty, hold the first `tokens` of `source`'s KV, shared if possible."""
        ...

    def trim(self, sequence: SequenceId, tokens: int) -> None:
        """Keep only the first `tokens` of a sequence's KV; 0 frees it."""
        ...

    def save(self, sequence: SequenceId) -> bytes:
        """A sequence's KV as bytes that `restore` of the same driver and model reads."""
        ...

    def restore(self, blob: bytes, sequence: SequenceId) -> None:
        """Fill an empty sequence from saved bytes. Raises: DeviceError for a foreign blob."""
        ...

    def attach(self, name: str, path: Path) -> None:
        """Load an adapter so that sequences can name it; sequences that run are not disturbed."""
        ...

    def detach(self, name: str) -> None: ...

    def allocations(self) -> list[Allocation]: ...

    def close(self) -> None: ...


class EmbeddingModel(Protocol):
    """An open embedding model."""

    @property
    def info(self) -> EmbeddingInfo: ...

    def count(self, text: str) -> int:
        """Tokens of a text; any thread."""
        ...

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit-length vector a text, longer texts cut to the window. Raises: DeviceError."""
        ...

    def allocations(self) -> list[Allocation]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class EmbeddingInfo:
    """An embedding model as opened.

    `identity` names what the model computes: the same text has the same vector from all models of
    one identity. `batch_tokens` are about those of one forward pass. The prefixes are what the
    model wants before a query and before a document; `embed` does not add them.
    """

    name: str
    device: str
    dimensions: int
    max_tokens: int
    parameters: int
    batch_tokens: int = 2_048
    identity: str = ""
    query_prefix: str = ""
    document_prefix: str = ""


class CrossEncoder(Protocol):
    """An open model that reads a query and a text together and says how well they fit."""

    @property
    def info(self) -> CrossEncoderInfo: ...

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers a query, from 0 to 1; pairs longer than the window are cut.

        Raises: DeviceError.
        """
        ...

    def allocations(self) -> list[Allocation]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class CrossEncoderInfo:
    """A cross-encoder as opened; `max_tokens` are those of query and text together."""

    name: str
    device: str
    max_tokens: int
    parameters: int
