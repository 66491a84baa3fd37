"""Where the journal of durable processes stands.

The gate asks it before a call runs and tells it the result before the program sees it. The only
journal yet keeps nothing: a process does not survive the kernel.
"""

from __future__ import annotations

from typing import Any, Protocol

from llmos.kernel.process import Process
from llmos.syscalls.calls import Call
from llmos.syscalls.values import Value


class Journal(Protocol):
    def recall(self, process: Process, call: Call[Any]) -> Value | None:
        """The recorded result of this call of a replayed process, or None."""
        ...

    def record(self, process: Process, call: Call[Any], result: Value) -> None:
        """Make a result durable before the program sees it."""
        ...


class NoJournal:
    def recall(self, process: Process, call: Call[Any]) -> Value | None:
        return None

    def record(self, process: Process, call: Call[Any], result: Value) -> None:
        return None
