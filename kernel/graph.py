"""Task graphs: a DAG of programs as one job.

The job is a process like any other: it spawns, waits and kills by the same syscalls, so signals,
quotas and accounting hold for the whole. Ready nodes run at once; a node may be retried and timed;
a failure skips what depends on it, or is tolerated, as the node declares.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx

from llmos.kernel.clock import Clock
from llmos.syscalls import calls
from llmos.syscalls.calls import GraphNode
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Exited, GraphOutcome, NodeOutcome
from llmos.syscalls.trap import Trap


def build(nodes: Sequence[GraphNode]) -> nx.DiGraph[str]:
    """The graph of some nodes, edges from a node to those that need it.

    Raises: SyscallError("invalid") naming a repeated or unknown node, or the nodes of a cycle.
    """
    graph: nx.DiGraph[str] = nx.DiGraph()
    for node in nodes:
        if node.name in graph:
            raise _invalid(f"node {node.name!r} is there twice")
        graph.add_node(node.name)
    for node in nodes:
        for needed in node.after:
            if needed not in graph:
                raise _invalid(f"node {node.name!r} is after {needed!r}, which is not in the graph")
            graph.add_edge(needed, node.name)
    if not nx.is_directed_acyclic_graph(graph):
        cycle = [edge[0] for edge in nx.find_cycle(graph)]
        chain = " -> ".join([*cycle, cycle[0]])
        raise SyscallError(
            "invalid",
            f"nodes: they wait for each other in a cycle: {chain}",
            field="nodes",
            cycle=cycle,
        )
    return graph


class GraphRun:
    """One run of a task graph, inside the process that stands for it."""

    def __init__(
        self, trap: Trap, nodes: Sequence[GraphNode], *, clock: Clock, max_parallel: int | None
    ) -> None:
        self._trap = trap
        self._nodes = {node.name: node for node in nodes}
        self._graph = build(nodes)
        self._paths_s = _paths_s(self._graph, self._nodes)
        self._clock = clock
        self._started_s = clock.now()
        self._outcomes: dict[str, NodeOutcome] = {}
        self._slots = asyncio.Semaphore(max_parallel or len(self._nodes))

    async def run(self) -> GraphOutcome:
        """Run to the end; a failed node makes the outcome failed unless it was tolerated."""
        waiting = {name: self._graph.in_degree(name) for name in self._nodes}
        running: dict[asyncio.Task[NodeOutcome], str] = {}
        try:
            ready = [name for name, count in waiting.items() if count == 0]
            while ready or running:
                for name in ready:
                    running[asyncio.create_task(self._node(self._nodes[name]))] = name
                ready = []
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    name = running.pop(task)
                    self._outcomes[name] = task.result()
                    for successor in self._graph.successors(name):
                        waiting[successor] -= 1
                        if waiting[successor] == 0:
                            ready.append(successor)
        finally:
            for task in running:
                task.cancel()
        failed = [
            name
            for name, outcome in self._outcomes.items()
            if outcome.status != "ok" and self._nodes[name].on_failure == "propagate"
        ]
        return GraphOutcome(
            status="failed" if failed else "ok",
            nodes=self._outcomes,
            critical_path=self._critical_path(),
            seconds=self._clock.now() - self._started_s,
        )

    async def _node(self, node: GraphNode) -> NodeOutcome:
        inputs: dict[str, Any] = {}
        for needed in node.after:
            before = self._outcomes[needed]
            if before.status != "ok" and self._nodes[needed].on_failure == "propagate":
                return NodeOutcome(node=node.name, status="skipped")
            inputs[needed] = before.value
        async with self._slots:
            started = self._clock.now() - self._started_s
            attempts = 0
            while True:
                attempts += 1
                exited = await self._attempt(node, inputs)
                if exited.status == "ok" or attempts > node.retries:
                    break
        is_timeout = exited.error is not None and exited.error.code == "timeout"
        status = "timeout" if is_timeout else "ok" if exited.status == "ok" else "error"
        return NodeOutcome(
            node=node.name,
            status=status,
            value=exited.value,
            error=exited.error,
            attempts=attempts,
            started_s=started,
            ended_s=self._clock.now() - self._started_s,
        )

    async def _attempt(self, node: GraphNode, inputs: dict[str, Any]) -> Exited:
        kwargs = {**node.kwargs, "inputs": inputs} if node.after else node.kwargs
        try:
            child = await self._trap.call(
                calls.Spawn(
                    program=node.program,
                    args=node.args,
                    kwargs=kwargs,
                    path_s=self._paths_s[node.name],
                )
            )
        except SyscallError as problem:
            return Exited(pid=0, program=node.program, status="error", error=problem.value())
        try:
            return await self._trap.call(calls.Wait(pid=child.pid, timeout_s=node.timeout_s))
        except SyscallError as problem:
            if problem.code != "timeout":
                raise
            await self._trap.call(calls.Signal(pid=child.pid, signal="KILL"))
            ended = await self._trap.call(calls.Wait(pid=child.pid))
            return ended.model_copy(update={"error": problem.value()})

    def _critical_path(self) -> tuple[str, ...]:
        """The chain of nodes that took longest, by measured times."""
        weighted: nx.DiGraph[str] = nx.DiGraph()
        weighted.add_nodes_from(self._graph.nodes)
        for source, target in self._graph.edges:
            weighted.add_edge(source, target, weight=self._seconds(source))
        end = nx.DiGraph(weighted)
        for name in self._graph.nodes:  # a common end gives the last nodes their weight
            end.add_edge(name, "", weight=self._seconds(name))
        return tuple(name for name in nx.dag_longest_path(end) if name)

    def _seconds(self, name: str) -> float:
        outcome = self._outcomes[name]
        if outcome.started_s is None or outcome.ended_s is None:
            return 0.0
        return outcome.ended_s - outcome.started_s


def _paths_s(graph: nx.DiGraph[str], nodes: Mapping[str, GraphNode]) -> dict[str, float]:
    """The longest way from the start of each node to the end of the graph, as expected."""
    paths_s: dict[str, float] = {}
    for name in reversed(list(nx.topological_sort(graph))):
        onward = max((paths_s[after] for after in graph.successors(name)), default=0.0)
        paths_s[name] = nodes[name].expected_s + onward
    return paths_s


def _invalid(message: str) -> SyscallError:
    return SyscallError("invalid", f"nodes: {message}", field="nodes")
