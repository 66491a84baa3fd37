"""What can be seen: ps, traces, the ledger."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.rights import Capabilities

NO_RIGHTS = Capabilities(programs=frozenset({"*"}), topics=frozenset({"*"}))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def idle(os: OS) -> None:
    await os.receive()


def test_a_process_sees_itself_and_its_descendants_only(boot_kernel: Any) -> None:
    async def parent(os: OS) -> list[int]:
        child = await os.spawn(idle)
        seen = [info.pid for info in await os.ps()]
        return [os.pid, child, *seen]

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            await kernel.os.spawn(idle)
            pid = await kernel.os.spawn(parent, capabilities=NO_RIGHTS)
            me, child, *seen = await kernel.os.result(pid)
            assert seen == [me, child]
            assert len(await kernel.os.ps()) == 3  # init, the first, and the adopted child

    asyncio.run(scenario())


def test_ps_tells_what_each_process_waits_for(boot_kernel: Any) -> None:
    async def sleeper(os: OS) -> None:
        await os.sleep(100)

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            mail, sleep = await kernel.os.spawn(idle), await kernel.os.spawn(sleeper, nice=5)
            await settle()
            rows = {info.pid: info for info in await kernel.os.ps()}
            assert (rows[mail].state, rows[mail].waiting_on) == ("waiting_ipc", "mail")
            assert (rows[sleep].state, rows[sleep].waiting_on) == ("sleeping", "100 s")
            assert rows[sleep].nice == 5

    asyncio.run(scenario())


def test_the_trace_of_another_process_needs_a_capability(boot_kernel: Any) -> None:
    async def spy(os: OS, pid: int) -> None:
        await os.trace(pid=pid)

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            other = await kernel.os.spawn(idle)
            pid = await kernel.os.spawn(spy, other, capabilities=NO_RIGHTS)
            assert (await kernel.os.wait(pid)).error.fields["capability"] == "observe_any"
            names = [event.name for event in (await kernel.os.trace(pid=other)).events]
            assert names == ["spawn"]

    asyncio.run(scenario())


def test_the_trace_opens_as_chrome_json(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            await kernel.os.signal(await kernel.os.spawn(idle), "KILL")
            trace = json.loads(json.dumps(kernel.chrome_trace()))
            events = trace["traceEvents"]
            assert {event["ph"] for event in events} == {"M", "X", "i"}
            spans = [event for event in events if event["ph"] == "X"]
            assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in spans)

    asyncio.run(scenario())


def test_events_can_be_followed_live(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            events = kernel.events()
            first = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            await kernel.os.spawn(idle)
            assert (await first).name == "spawn"
            await events.aclose()

    asyncio.run(scenario())


def test_the_ring_of_events_is_bounded_and_counts_what_it_lost(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(trace_events=10) as kernel:
            for _ in range(25):
                await kernel.os.nice(0)
            kept = await kernel.os.trace()
            assert (len(kept.events), kept.dropped) == (10, 15)

    asyncio.run(scenario())


@pytest.mark.parametrize("call", ["learn", "signal", "topic", "namespace", "model"])
def test_what_is_not_granted_is_denied_and_named(boot_kernel: Any, call: str) -> None:
    async def agent(os: OS, other: int) -> None:
        match call:
            case "learn":
                await os.model_promote("x")
            case "signal":
                await os.signal(other, "KILL")
            case "topic":
                await os.publish("news", 1)
            case "namespace":
                await os.remember("x", namespace="shared")
            case _:
                await os.generate("x", model="big")

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            other = await kernel.os.spawn(idle)
            pid = await kernel.os.spawn(agent, other, capabilities=Capabilities())
            error = (await kernel.os.wait(pid)).error
            assert error.code == "denied"
            assert "Capabilities(" in error.message
            assert not kernel.table.get(other).is_over

    asyncio.run(scenario())


def test_errors_survive_pickling_and_json() -> None:
    import pickle

    from llmos.syscalls.errors import ErrorValue

    problem = SyscallError("busy", "try later", is_retryable=True, limit=3)
    again = pickle.loads(pickle.dumps(problem))
    assert again.value() == problem.value()
    assert ErrorValue.model_validate_json(problem.value().model_dump_json()) == problem.value()


def test_training_data_is_read_with_the_callers_rights(boot_kernel: Any, tmp_path: Any) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"messages": []}\n')

    async def trainer(os: OS) -> None:
        await os.finetune(str(secret), "spy")

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            rights = Capabilities(learn=True)
            exited = await kernel.os.wait(await kernel.os.spawn(trainer, capabilities=rights))
            assert exited.error.code == "denied"
            assert "folders_read" in exited.error.message

    asyncio.run(scenario())


def test_a_call_that_cannot_be_is_refused_with_its_field_named(boot_kernel: Any) -> None:
    async def agent(os: OS) -> str:
        try:
            await os.generate("x", max_tokens=0)
        except SyscallError as problem:
            return f"{problem.code} {problem.fields['field']}"
        return "made"

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            pid = await kernel.os.spawn(agent)
            assert await kernel.os.result(pid) == "invalid max_tokens"

    asyncio.run(scenario())


def test_a_program_called_wrongly_is_not_started(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            with pytest.raises(SyscallError, match="too many positional arguments") as refusal:
                await kernel.os.spawn(idle, "surplus")
            assert refusal.value.fields["field"] == "args"
            assert len(kernel.table) == 1

    asyncio.run(scenario())


def test_a_plain_count_needs_no_model_and_no_right(boot_kernel: Any) -> None:
    async def counter(os: OS) -> int:
        return (await os.tokenize("one two three", model="tiktoken")).count

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            pid = await kernel.os.spawn(counter, capabilities=Capabilities())
            assert await kernel.os.result(pid) == 3

    asyncio.run(scenario())
