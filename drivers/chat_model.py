"""What a driver for a model on another machine must do: the second contract beside `contract.py`.

Such a model is reached by whole conversations and has a scheduler of its own. It knows no
sequences, cannot be stepped, and its KV can be neither forked, trimmed nor saved, so it is not
pressed into the contract of a local model. All methods run on the event loop.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from llmos.drivers.contract import DeviceError, ModelInfo, RequestError
from llmos.syscalls.content import Message, ToolRequest
from llmos.syscalls.options import Constraint, Sampling
from llmos.syscalls.results import ToolSpec


class PassingError(DeviceError):
    """A failure before any piece of an answer that may pass; `after_s` is the server's wish."""

    def __init__(
        self, message: str, *, is_fatal: bool = False, after_s: float | None = None
    ) -> None:
        super().__init__(message, is_fatal=is_fatal)
        self.after_s = after_s

    def __reduce__(self) -> tuple[object, ...]:
        return (_passing, (str(self), self.is_fatal, self.after_s))


class UnsupportedError(RequestError):
    """The server has no means for what was asked; another device may."""

    def __reduce__(self) -> tuple[object, ...]:
        return (_unsupported, (str(self), self.field))


class TooLongError(RequestError):
    """The prompt does not fit the server's window."""

    def __reduce__(self) -> tuple[object, ...]:
        return (_too_long, (str(self), self.field))


def _passing(message: str, is_fatal: bool, after_s: float | None) -> PassingError:
    return PassingError(message, is_fatal=is_fatal, after_s=after_s)


def _unsupported(message: str, field: str) -> UnsupportedError:
    return UnsupportedError(message, field=field)


def _too_long(message: str, field: str) -> TooLongError:
    return TooLongError(message, field=field)


@dataclass(frozen=True, slots=True)
class RemoteSpec:
    """Where a model is served, and how to behave there.

    `key_variable` names an environment variable that holds the key; the key itself is kept in no
    setting and written to no log. `session_header` carries the session's name to a balancer that
    sends equal ones to the same server.
    """

    name: str
    url: str
    model: str
    context_tokens: int = 4096
    concurrency: int = 8
    key_variable: str | None = None
    session_header: str | None = None
    timeout_s: float = 120.0  # without a byte from the server
    retries: int = 3


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a model is to continue, before any rendering: messages, or `prompt` as plain text."""

    messages: Sequence[Message] = ()
    tools: Sequence[ToolSpec] = ()
    prefix: str = ""
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One generation as a server is asked for it.

    Requests with the same `session` begin alike, so that a server finds what it has computed for
    the last one.
    """

    conversation: Conversation
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    constraint: Constraint | None = None
    session: str = ""


class ChatEnd(NamedTuple):
    """How an answer ended. Counts are None where the server does not tell them."""

    finish: Literal["stop", "length", "tool_requests"]
    requests: tuple[ToolRequest, ...] = ()
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None


class ChatModel(Protocol):
    """A model behind a server."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def tokenizer(self) -> str:
        """The name of the vocabulary that `tokenize` counts by; it need not be the model's."""
        ...

    def tokenize(self, text: str) -> list[int]: ...

    def render(self, conversation: Conversation) -> list[int]:
        """About what the model will read, for budgets: its length is what counts."""
        ...

    def check(self, request: ChatRequest) -> None:
        """Raises: UnsupportedError for what the server has no means for."""
        ...

    async def open(self) -> None:
        """See that the server is there and has the model; again after a failure.

        What is under way is not disturbed. Raises: DeviceError.
        """
        ...

    def stream(self, request: ChatRequest) -> AsyncGenerator[str | ChatEnd]:
        """The answer in pieces of text, then its end; closing the iterator ends it at the server.

        What fails before the first piece and may pass is tried again.
        Raises: DeviceError, fatal when the server cannot be reached; RequestError.
        """
        ...

    async def close(self) -> None: ...
