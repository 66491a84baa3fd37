"""Blocking, and finding out that a wait can never end.

Every wait of a process for another process (its exit, its mail, room in its mailbox, its end of a
pipe) is an edge of the wait-for graph. A wait that would close a cycle is a deadlock: every call on
the cycle fails with `SyscallError("deadlock")` and the cycle's pids.

An edge stands only where progress depends on that one process: not for waits with a time limit, for
"any child" or "any sender", nor for init, behind which stands the outside world. A cycle through a
process that has other syscalls under way is no deadlock; it is looked for when a wait begins.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import networkx as nx

from llmos.kernel.clock import Clock
from llmos.kernel.process import INIT, Process
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ProcessState

T = TypeVar("T")


class Waits:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._graph: nx.DiGraph[int] = nx.DiGraph()
        self._blocked: dict[int, tuple[Process, asyncio.Future[Any]]] = {}

    async def block(
        self,
        process: Process,
        future: asyncio.Future[T],
        *,
        state: ProcessState,
        on: str,
        target: int | None = None,
        timeout_s: float | None = None,
    ) -> T:
        """Wait for a future as `process`, shown in `ps` as waiting on `on`.

        Raises: SyscallError("deadlock") or SyscallError("timeout"); the future is then cancelled.
        """
        has_edge = (
            target is not None
            and timeout_s is None
            and INIT not in (process.pid, target)
            and process.pid not in self._blocked
        )
        timer = None
        if timeout_s is not None:
            timer = self._clock.call_later(timeout_s, lambda: _time_out(future, on, timeout_s))
        earlier = (process.state, process.waiting_on)
        process.state, process.waiting_on = state, on
        if has_edge and target is not None:
            self._add_edge(process, target, future)
        try:
            return await future
        finally:
            if timer is not None:
                timer.cancel()
            if has_edge:
                self._remove_edge(process.pid)
            if not future.done():
                future.cancel()
            if not process.is_over:
                process.state, process.waiting_on = earlier

    def edges(self) -> list[tuple[int, int]]:
        """Who waits for whom now."""
        return list(self._graph.edges)

    def _add_edge(self, process: Process, target: int, future: asyncio.Future[Any]) -> None:
        graph, waiter = self._graph, process.pid
        self._blocked[waiter] = (process, future)
        graph.add_edge(waiter, target)
        if target not in self._blocked or not nx.has_path(graph, target, waiter):
            return
        cycle: list[int] = nx.shortest_path(graph, target, waiter)
        stuck = [self._blocked[pid] for pid in cycle]
        if any(blocked.done() or len(process.inflight) > 1 for process, blocked in stuck):
            return
        for _, blocked in stuck:
            blocked.set_exception(_deadlock(cycle))

    def _remove_edge(self, waiter: int) -> None:
        del self._blocked[waiter]
        (target,) = list(self._graph.successors(waiter))
        self._graph.remove_edge(waiter, target)
        for pid in (waiter, target):
            if self._graph.has_node(pid) and self._graph.degree(pid) == 0:
                self._graph.remove_node(pid)


def _deadlock(cycle: list[int]) -> SyscallError:
    chain = " -> ".join(str(pid) for pid in [*cycle, cycle[0]])
    return SyscallError(
        "deadlock",
        f"these processes wait for each other: {chain}; give one of the waits a timeout_s, or "
        "let one side send before it receives",
        cycle=list(cycle),
    )


def _time_out(future: asyncio.Future[Any], on: str, limit_s: float) -> None:
    if not future.done():
        future.set_exception(
            SyscallError(
                "timeout",
                f"waited {limit_s:g} s for {on}; wait longer or do without",
                is_retryable=True,
                limit_s=limit_s,
            )
        )
