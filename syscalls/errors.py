"""Errors, by who must act.

`SyscallError` is for the agent: a code, whether a retry can help, typed fields, and a message that
says what to do. `ConfigError` is for the person who configured or embedded us. `KernelPanic` is a
broken invariant of ours. `Killed` is nobody's: let it pass.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import ValidationError

from llmos.syscalls.values import JsonValue, Value

ErrorCode = Literal[
    "not_available",  # the kernel cannot serve this yet or here; the message names what is missing
    "invalid",  # a field has a wrong value; fields: field
    "denied",  # a capability is missing; fields: capability
    "quota_exceeded",  # fields: quota, limit, used, needed
    "not_found",  # no such process, program, tool, file, context, item; fields: what, name
    "unknown_model",  # fields: name, known
    "context_overflow",  # prompt longer than the window; fields: prompt_tokens, limit_tokens
    "busy",  # a queue is full or a thing is in use; retryable
    "mailbox_full",  # the receiver's mailbox is full; retryable
    "broken_pipe",  # the other end of a pipe is gone
    "deadlock",  # the wait would close a cycle of waiting processes; fields: cycle
    "timeout",  # a declared time limit passed; fields: limit_s
    "tool_invalid",  # arguments do not fit the tool's schema; fields: tool, problems
    "tool_failed",  # the tool raised; fields: tool, error
    "device",  # a driver failed; fields: device
    "storage",  # the disk refused (full, read-only, damaged); fields: path
    "failed",  # a job (graph, finetune) failed; fields say where
    "refused",  # a gate does not let a version be promoted; fields: name, slot, failing
]
ERROR_CODES: tuple[ErrorCode, ...] = get_args(ErrorCode)


class ErrorValue(Value):
    """The JSON form of a `SyscallError`."""

    code: ErrorCode
    message: str
    is_retryable: bool = False
    fields: dict[str, JsonValue] = {}


class LlmosError(Exception):
    """The root of every error that llmos raises on purpose."""


class SyscallError(LlmosError):
    """A syscall was refused or failed; the agent decides what to do."""

    def __init__(
        self, code: ErrorCode, message: str, *, is_retryable: bool = False, **fields: JsonValue
    ) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message
        self.is_retryable = is_retryable
        self.fields: dict[str, JsonValue] = fields

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.value(),))

    def value(self) -> ErrorValue:
        """This error as a value with a JSON form."""
        return ErrorValue(
            code=self.code,
            message=self.message,
            is_retryable=self.is_retryable,
            fields=self.fields,
        )

    @classmethod
    def from_value(cls, value: ErrorValue) -> SyscallError:
        """The inverse of `value()`."""
        return cls(value.code, value.message, is_retryable=value.is_retryable, **dict(value.fields))


def _rebuild(value: ErrorValue) -> SyscallError:
    return SyscallError.from_value(value)


def invalid(problem: ValidationError) -> SyscallError:
    """A validation failure as a syscall error that names the wrong fields, the first as `field`."""
    found = problem.errors(include_url=False, include_input=False, include_context=False)
    fields = [".".join(str(part) for part in one["loc"]) or "(whole value)" for one in found]
    told = "; ".join(f"{field}: {one['msg']}" for field, one in zip(fields, found, strict=True))
    return SyscallError("invalid", told, field=fields[0])


class ConfigError(LlmosError):
    """A setting is wrong; the message names the field and the remedy."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.field, self.message))


class KernelPanic(LlmosError):
    """An invariant of the kernel is broken; never swallowed."""


class Killed(BaseException):
    """A TERM or KILL signal reached the process; let it pass."""

    def __init__(self, signal: str) -> None:
        super().__init__(f"killed by {signal}")
        self.signal = signal

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.signal,))
