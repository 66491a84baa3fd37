"""Task graphs as jobs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.agents.handle import OS
from llmos.kernel.clock import VirtualClock
from llmos.kernel.graph import build
from llmos.syscalls.calls import GraphNode
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import GraphOutcome


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def add(os: OS, number: int, inputs: dict[str, int] | None = None) -> int:
    return number + sum((inputs or {}).values())


async def fail(os: OS, inputs: Any = None) -> None:
    raise SyscallError("failed", "as it was told")


async def hang(os: OS, inputs: Any = None) -> None:
    await os.receive()


async def run_graph(os: OS, nodes: list[GraphNode], **options: Any) -> GraphOutcome:
    value = await os.result(await os.spawn_graph(nodes, **options))
    return GraphOutcome.model_validate(value)


def test_values_flow_along_the_edges_of_a_diamond(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            os = kernel.os
            outcome = await run_graph(
                os,
                [
                    os.node("top", add, 1),
                    os.node("left", add, 10, after=["top"]),
                    os.node("right", add, 100, after=["top"]),
                    os.node("end", add, 1000, after=["left", "right"]),
                ],
            )
            assert outcome.status == "ok"
            assert outcome.nodes["end"].value == 1112
            assert outcome.critical_path[0] == "top"
            assert outcome.critical_path[-1] == "end"

    asyncio.run(scenario())


def test_a_failure_skips_what_depends_on_it_and_nothing_else(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            os = kernel.os
            outcome = await run_graph(
                os,
                [
                    os.node("bad", fail, retries=2),
                    os.node("after bad", add, 1, after=["bad"]),
                    os.node("alone", add, 7),
                ],
            )
            assert outcome.status == "failed"
            assert (outcome.nodes["bad"].status, outcome.nodes["bad"].attempts) == ("error", 3)
            assert outcome.nodes["after bad"].status == "skipped"
            assert outcome.nodes["alone"].value == 7

    asyncio.run(scenario())


def test_a_tolerated_failure_passes_no_value_and_lets_the_rest_run(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            os = kernel.os

            async def counts(os: OS, inputs: dict[str, Any]) -> list[Any]:
                return sorted(inputs.items())

            outcome = await run_graph(
                os,
                [
                    os.node("bad", fail, on_failure="tolerate"),
                    os.node("next", counts, after=["bad"]),
                ],
            )
            assert outcome.status == "ok"
            assert outcome.nodes["next"].value == [["bad", None]]

    asyncio.run(scenario())


def test_a_node_that_hangs_is_killed_at_its_time_limit(boot_kernel: Any) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        async with boot_kernel(clock=clock) as kernel:
            os = kernel.os
            job = await os.spawn_graph([os.node("slow", hang, timeout_s=5)])
            await settle()
            clock.advance(5)
            outcome = GraphOutcome.model_validate(await os.result(job))
            assert outcome.nodes["slow"].status == "timeout"
            assert len(kernel.table) == 1

    asyncio.run(scenario())


def test_killing_a_job_kills_nobody_else_and_leaves_its_nodes_to_init(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            os = kernel.os
            job = await os.spawn_graph([os.node("slow", hang)])
            await settle()
            await os.signal(job, "KILL")
            assert (await os.wait(job)).status == "killed"
            (orphan,) = [p for p in await os.ps() if p.program.endswith("hang")]
            assert orphan.parent == 1

    asyncio.run(scenario())


def test_no_more_nodes_run_at_once_than_allowed(boot_kernel: Any) -> None:
    running, most = 0, 0

    async def busy(os: OS) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await os.sleep(0)
        running -= 1

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            os = kernel.os
            nodes = [os.node(f"n{index}", busy) for index in range(10)]
            outcome = await run_graph(os, nodes, max_parallel=3)
            assert outcome.status == "ok"

    asyncio.run(scenario())
    assert most == 3


def test_a_cycle_is_refused_with_its_nodes_named(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            os = kernel.os
            nodes = [
                os.node("a", add, 1, after=["c"]),
                os.node("b", add, 1, after=["a"]),
                os.node("c", add, 1, after=["b"]),
                os.node("d", add, 1),
            ]
            with pytest.raises(SyscallError, match="cycle") as refusal:
                await os.spawn_graph(nodes)
            assert sorted(refusal.value.fields["cycle"]) == ["a", "b", "c"]
            assert len(kernel.table) == 1

    asyncio.run(scenario())


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=20))
def test_edges_from_earlier_to_later_nodes_are_never_a_cycle(pairs: list[tuple[int, int]]) -> None:
    after: dict[int, set[str]] = {index: set() for index in range(9)}
    for one, other in pairs:
        if one != other:
            after[max(one, other)].add(f"n{min(one, other)}")
    nodes = [
        GraphNode(name=f"n{index}", program="x", after=tuple(sorted(needed)))
        for index, needed in after.items()
    ]
    assert len(build(nodes)) == 9
