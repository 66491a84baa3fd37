"""What a generation belongs to: the program that a user waits for, and on whose behalf it runs.

A program is the process below init that the caller descends from. Some callers have no process that
lasts: an HTTP client sends its whole conversation with each request, and each request is a process
of its own. Those are told by what they send: a conversation that begins with one that was answered
here before is the same program going on. So a client that comes back from a tool takes the place
that it had, and its KV is known to be its own. Event-loop thread only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from llmos.kernel.process import INIT, Process
from llmos.syscalls.content import Message

# Conversations remembered; of those beyond, the longest unused is forgotten and starts anew.
MOST_CONVERSATIONS = 10_000


class Origin(NamedTuple):
    """The program that a generation belongs to; `program` is a pid, or negative a conversation."""

    program: int
    arrived_s: float
    client: str
    path_s: float


class _Known(NamedTuple):
    program: int
    arrived_s: float


class Origins:
    """Finds the origin of each generation."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, _Known] = OrderedDict()
        self._count = 0

    def of(self, process: Process, messages: Sequence[Message], now_s: float) -> Origin:
        """The origin of a generation that starts now."""
        root = process.root
        if process.pid != INIT and process.parent != INIT:
            return Origin(root.pid, root.started_s, process.client, process.path_s)
        found = self._earlier(process, messages)
        if found is not None:
            return Origin(found.program, found.arrived_s, process.client, process.path_s)
        if process.pid != INIT:
            return Origin(root.pid, root.started_s, process.client, process.path_s)
        self._count += 1
        return Origin(-self._count, now_s, process.client, process.path_s)

    def answered(
        self, process: Process, origin: Origin, messages: Sequence[Message], answer: Message
    ) -> None:
        """Remember that a conversation with this answer belongs to a program."""
        if not messages or (process.pid != INIT and process.parent != INIT):
            return
        mark = _start(process)
        for message in (*messages, answer):
            mark = _onward(mark, message)
        self._known[mark] = _Known(origin.program, origin.arrived_s)
        self._known.move_to_end(mark)
        while len(self._known) > MOST_CONVERSATIONS:
            self._known.popitem(last=False)

    def _earlier(self, process: Process, messages: Sequence[Message]) -> _Known | None:
        """The longest beginning of a conversation that was answered here."""
        mark, found = _start(process), None
        for message in messages:
            mark = _onward(mark, message)
            if message.role == "assistant":
                found = self._known.get(mark, found)
        return found


def _start(process: Process) -> int:
    return hash((process.client, process.program if process.pid != INIT else ""))


def _onward(mark: int, message: Message) -> int:
    asked = tuple((one.name, str(one.arguments)) for one in message.tool_requests)
    return hash((mark, message.role, message.text, asked))
