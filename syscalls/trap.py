"""The only door from a program into the kernel.

A trap is bound to one process. In-process programs hold one whose methods run in the kernel's
event loop; other transports (a socket, HTTP) implement the same three members.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from llmos.syscalls.calls import Call, Generate
from llmos.syscalls.results import Delta, Generated

R = TypeVar("R")

# A program receives its handle and JSON arguments, and returns a JSON value.
ProgramFunction = Callable[..., Coroutine[Any, Any, Any]]


class Trap(Protocol):
    @property
    def pid(self) -> int:
        """The process that this trap is bound to."""
        ...

    async def call(self, call: Call[R]) -> R:
        """Issue a syscall and return its result.

        Raises: SyscallError when it is refused or fails; Killed when a signal ends the process.
        """
        ...

    def stream(self, call: Generate) -> AsyncIterator[Delta | Generated]:
        """Issue a generation and yield its text as it comes; the last item is the result.

        Closing the iterator cancels the generation within one iteration of the scheduler.
        """
        ...

    def load(self, program: ProgramFunction) -> str:
        """Make a function known as a program and return the name to spawn it by."""
        ...
