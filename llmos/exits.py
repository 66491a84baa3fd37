"""Exit statuses of the command line, and which error gives which."""

from __future__ import annotations

from llmos.syscalls.errors import ConfigError, ErrorCode, LlmosError, SyscallError

OK = 0
FAILED = 1  # the program, or one of the processes asked about, did not end well
USAGE = 2
CONFIG = 3
UNAVAILABLE = 4  # a model or device that is needed cannot be had
INTERRUPTED = 130  # 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE: whoever read the output has left


class UsageError(LlmosError):
    """What was typed cannot be meant; the message says what can."""


_UNAVAILABLE_CODES: frozenset[ErrorCode] = frozenset({"device", "not_available", "unknown_model"})


def exit_status(problem: LlmosError) -> int:
    """The exit status for an error that ended a command."""
    from llmos.drivers.contract import DeviceError

    if isinstance(problem, UsageError):
        return USAGE
    if isinstance(problem, ConfigError):
        return CONFIG
    if isinstance(problem, DeviceError):
        return UNAVAILABLE
    if isinstance(problem, SyscallError):
        return exit_status_of_code(problem.code)
    return FAILED


def exit_status_of_code(code: ErrorCode) -> int:
    """The exit status for a program that failed with a code."""
    return UNAVAILABLE if code in _UNAVAILABLE_CODES else FAILED
