"""One generation on a device: what was asked, how far it is, and how it ended.

A `Generation` is made on the event loop, then belongs to the engine thread until the engine
delivers its `Outcome`; the fields say which side may touch them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmos.drivers.chat_model import Conversation
from llmos.drivers.contract import LanguageModel, SequenceId
from llmos.drivers.utf8 import TextStream
from llmos.kernel.policies import Entry
from llmos.kernel.speculation import Drafter
from llmos.syscalls.content import ToolRequest
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import Constraint, Sampling
from llmos.syscalls.results import FinishReason, TokenLogprob


@dataclass(frozen=True, slots=True)
class Order:
    """What to generate; `limit` is why `max_tokens` is what it is."""

    prompt: Sequence[int]
    sampling: Sampling
    max_tokens: int
    limit: FinishReason = "length"
    constraint: Constraint | None = None
    adapter: str | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    domain: str = ""  # KV is shared within one; across domains, the prompt's public beginning
    public_tokens: int = 0
    # what `prompt` was rendered from, for a device that renders by itself
    conversation: Conversation | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a generation ended, with where its time went. Times are seconds."""

    text: str
    tokens: tuple[int, ...]
    finish: FinishReason | None  # None: cancelled or failed
    error: SyscallError | None
    logprobs: tuple[TokenLogprob, ...]
    prompt_tokens: int
    cached_tokens: int
    queued_s: float
    prefill_s: float
    decode_s: float
    kv_byte_s: float
    requests: tuple[ToolRequest, ...] = ()  # tool requests that the device itself has read
    told_tokens: int | None = None  # a remote device tells how many tokens, not which

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens) if self.told_tokens is None else self.told_tokens


@dataclass(slots=True, eq=False)
class Generation:
    """The state of one generation."""

    order: Order
    entry: Entry
    # event loop: where text goes as it comes (None ends it), and the outcome
    pieces: asyncio.Queue[str] | None
    done: asyncio.Future[Outcome]
    # engine thread
    text: TextStream
    sequence: SequenceId | None = None
    fed: int = 0
    output: list[int] = field(default_factory=list[int])
    written: list[str] = field(default_factory=list[str])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    cached_tokens: int | None = None
    is_held: bool = False
    drafter: Drafter | None = None
    last_step: int = 0  # the number of the last step that it was in
    # prompt tokens in common with other generations, by their key
    shared_with: dict[int, int] = field(default_factory=dict[int, int])
    first_fed_s: float | None = None
    first_token_s: float | None = None
    kv_token_s: float = 0.0

    @property
    def length(self) -> int:
        """Tokens known so far: the prompt and what was sampled."""
        return len(self.order.prompt) + len(self.output)

    @property
    def pending(self) -> int:
        """Known tokens that are not in KV yet."""
        return self.length - self.fed

    @property
    def is_prefilling(self) -> bool:
        return self.fed < len(self.order.prompt)

    def known(self, start: int, stop: int) -> Sequence[int]:
        """Known tokens by position."""
        prompt = self.order.prompt
        if stop <= len(prompt):
            return prompt[start:stop]
        if start >= len(prompt):
            return self.output[start - len(prompt) : stop - len(prompt)]
        return [*prompt[start:], *self.output[: stop - len(prompt)]]

    def take(
        self, driver: LanguageModel, token: int, *, is_end: bool, logprob: TokenLogprob | None
    ) -> FinishReason | None:
        """Account for a sampled token; returns why the generation is over, if it is."""
        if is_end or token in self.order.stop_tokens:
            return "stop"
        self.output.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        piece = self.text.push(driver.detokenize([token]))
        if piece:
            self.written.append(piece)
        if self.text.stopped:
            return "stop"
        if len(self.output) >= self.order.max_tokens:
            return self.order.limit
        return None

    def outcome(
        self,
        *,
        now_s: float,
        kv_bytes_per_token: int,
        finish: FinishReason | None = None,
        error: SyscallError | None = None,
    ) -> Outcome:
        """The outcome as of now."""
        arrived = self.entry.arrived_s
        started = now_s if self.first_fed_s is None else self.first_fed_s
        prefilled = now_s if self.first_token_s is None else self.first_token_s
        return Outcome(
            text="".join(self.written),
            tokens=tuple(self.output),
            finish=finish,
            error=error,
            logprobs=tuple(self.logprobs),
            prompt_tokens=len(self.order.prompt),
            cached_tokens=self.cached_tokens or 0,
            queued_s=started - arrived,
            prefill_s=prefilled - started,
            decode_s=now_s - prefilled,
            kv_byte_s=self.kv_token_s * kv_bytes_per_token,
        )
