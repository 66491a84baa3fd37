"""Births, signals and deaths."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.kernel.clock import VirtualClock
from llmos.syscalls.errors import Killed, SyscallError
from llmos.syscalls.rights import ALL_CAPABILITIES, Capabilities, Quota


async def settle() -> None:
    """Let every task that can run, run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def double(os: OS, number: int) -> int:
    return 2 * number


async def wait_for_mail(os: OS) -> Any:
    return (await os.receive()).body


async def raise_value_error(os: OS) -> None:
    raise ValueError("the agent's own fault")


def test_a_child_returns_its_value_and_is_reaped(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            pid = await kernel.os.spawn(double, 21)
            exited = await kernel.os.wait(pid)
            assert (exited.status, exited.value) == ("ok", 42)
            assert kernel.table.find(pid) is None
            with pytest.raises(SyscallError, match="not_found"):
                await kernel.os.wait(pid)

    asyncio.run(scenario())


def test_a_program_that_raises_ends_with_an_error_and_the_kernel_lives(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            exited = await kernel.os.wait(await kernel.os.spawn(raise_value_error))
            assert exited.status == "error"
            assert "ValueError" in exited.error.message
            assert await kernel.os.result(await kernel.os.spawn(double, 1)) == 2

    asyncio.run(scenario())


def test_a_program_that_calls_sys_exit_ends_itself_and_not_the_kernel(boot_kernel: Any) -> None:
    async def leave(os: OS) -> None:
        sys.exit(3)

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            ended = await kernel.os.wait(await kernel.os.spawn(leave))
            assert (ended.status, ended.error.fields["exception"]) == ("error", "SystemExit")

    asyncio.run(scenario())


def test_tasks_that_a_program_leaves_behind_end_with_it(boot_kernel: Any) -> None:
    left: list[asyncio.Task[Any]] = []

    async def careless(os: OS) -> None:
        left.append(asyncio.create_task(os.receive()))
        await os.sleep(0)

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            await kernel.os.wait(await kernel.os.spawn(careless))
            await settle()
            assert left[0].cancelled()

    asyncio.run(scenario())


def test_a_process_that_ends_while_it_is_stopped_is_no_longer_held(boot_kernel: Any) -> None:
    go_on = asyncio.Event()

    async def oblivious(os: OS) -> None:
        await go_on.wait()

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            pid = await kernel.os.spawn(oblivious)
            held: list[bool] = []
            kernel.table.get(pid).on_stop.append(held.append)
            await kernel.os.signal(pid, "STOP")
            go_on.set()
            assert (await kernel.os.wait(pid)).status == "ok"
            assert held == [True, False]

    asyncio.run(scenario())


def test_waiting_for_any_child_gives_the_first_that_ends(boot_kernel: Any) -> None:
    async def parent(os: OS) -> list[int]:
        slow = await os.spawn(wait_for_mail)
        fast = await os.spawn(double, 2)
        first = await os.wait()
        await os.send(slow, "done")
        second = await os.wait()
        return [first.pid == fast, second.pid == slow]

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            assert await kernel.os.result(await kernel.os.spawn(parent)) == [True, True]

    asyncio.run(scenario())


def test_who_waits_for_any_child_is_told_when_another_task_took_the_last_one(
    boot_kernel: Any,
) -> None:
    async def parent(os: OS) -> list[Any]:
        child = await os.spawn(wait_for_mail)
        anyone = [asyncio.create_task(os.wait()) for _ in range(2)]
        this_one = asyncio.create_task(os.wait(child))
        await settle()
        await os.send(child, "end")
        found = await asyncio.gather(this_one, *anyone, return_exceptions=True)
        return [f.code if isinstance(f, SyscallError) else f.status for f in found]

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            told = await kernel.os.result(await kernel.os.spawn(parent))
            assert told == ["ok", "not_found", "not_found"]

    asyncio.run(scenario())


def test_a_child_whose_waiter_is_cancelled_goes_to_the_next_waiter(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            os = kernel.os
            child = await os.spawn(double, 2)
            first, second = (asyncio.create_task(os.wait()) for _ in range(2))
            kernel.table.get(child).on_end = [first.cancel]
            assert (await second).value == 4

    asyncio.run(scenario())


def test_orphans_are_adopted_by_init_and_reaped_when_they_end(boot_kernel: Any) -> None:
    async def parent(os: OS) -> int:
        return await os.spawn(wait_for_mail)

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            orphan = await kernel.os.result(await kernel.os.spawn(parent))
            (info,) = [p for p in await kernel.os.ps() if p.pid == orphan]
            assert info.parent == 1
            await kernel.os.send(orphan, "go")
            await settle()
            assert kernel.table.find(orphan) is None

    asyncio.run(scenario())


def test_exit_unwinds_with_a_value(boot_kernel: Any) -> None:
    async def leaver(os: OS) -> None:
        await os.exit({"left": True})
        raise AssertionError("exit returned")

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            assert await kernel.os.result(await kernel.os.spawn(leaver)) == {"left": True}

    asyncio.run(scenario())


def test_a_stopped_process_makes_no_progress_until_it_is_continued(boot_kernel: Any) -> None:
    async def counter(os: OS) -> None:
        count = 0
        while True:
            await os.receive()
            count += 1
            await os.send(1, count)

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            pid = await kernel.os.spawn(counter)
            await kernel.os.send(pid, "tick")
            assert (await kernel.os.receive(sender=pid)).body == 1
            await kernel.os.signal(pid, "STOP")
            await kernel.os.send(pid, "tick")
            await settle()
            (info,) = [p for p in await kernel.os.ps() if p.pid == pid]
            assert info.state == "stopped"
            assert not kernel.init.mailbox
            await kernel.os.signal(pid, "CONT")
            assert (await kernel.os.receive(sender=pid)).body == 2

    asyncio.run(scenario())


def test_term_gives_a_program_the_chance_to_clean_up(boot_kernel: Any) -> None:
    async def careful(os: OS) -> None:
        try:
            await os.receive()
        finally:
            await os.send(1, "cleaned up")

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            pid = await kernel.os.spawn(careful)
            await settle()
            await kernel.os.signal(pid, "TERM")
            assert (await kernel.os.receive()).body == "cleaned up"
            exited = await kernel.os.wait(pid)
            assert (exited.status, exited.signal) == ("killed", "TERM")

    asyncio.run(scenario())


def test_term_kills_after_its_deadline(boot_kernel: Any) -> None:
    async def stubborn(os: OS) -> None:
        while True:
            try:
                await os.receive()
            except Killed:
                continue

    async def scenario() -> None:
        clock = VirtualClock()
        async with boot_kernel(clock=clock) as kernel:
            pid = await kernel.os.spawn(stubborn)
            await settle()
            await kernel.os.signal(pid, "TERM", deadline_s=5.0)
            await settle()
            clock.advance(4.9)
            assert not kernel.table.get(pid).is_over
            clock.advance(0.2)
            exited = await kernel.os.wait(pid)
            assert (exited.status, exited.signal) == ("killed", "KILL")

    asyncio.run(scenario())


def test_kill_needs_no_cooperation(boot_kernel: Any) -> None:
    async def deaf(os: OS) -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await os.receive()

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            pid = await kernel.os.spawn(deaf)
            await settle()
            await kernel.os.signal(pid, "KILL")
            assert (await kernel.os.wait(pid)).signal == "KILL"

    asyncio.run(scenario())


def test_every_syscall_under_way_is_interrupted_by_term(boot_kernel: Any) -> None:
    async def many(os: OS) -> None:
        await asyncio.gather(*(os.receive(sender=1) for _ in range(5)))

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            pid = await kernel.os.spawn(many)
            await settle()
            await kernel.os.signal(pid, "TERM")
            assert (await kernel.os.wait(pid)).signal == "TERM"

    asyncio.run(scenario())


def test_a_grant_that_the_parent_lacks_is_refused(boot_kernel: Any) -> None:
    async def climber(os: OS) -> int:
        return await os.spawn(double, 1, capabilities=Capabilities(tools=frozenset({"python"})))

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            rights = Capabilities(programs=frozenset({"*"}))
            pid = await kernel.os.spawn(climber, capabilities=rights)
            exited = await kernel.os.wait(pid)
            assert exited.error.code == "denied"
            assert exited.error.fields["capability"] == "tools:python"

    asyncio.run(scenario())


@pytest.mark.parametrize("is_allowed", [False, True])
def test_a_lower_nice_than_ones_own_takes_a_capability(boot_kernel: Any, is_allowed: bool) -> None:
    async def refused(call: Awaitable[Any]) -> tuple[Any, ...] | None:
        try:
            await call
        except SyscallError as problem:
            return problem.code, problem.fields["capability"], problem.fields["least"]
        return None

    async def climber(os: OS) -> list[Any]:
        """Try to get before others: by a child, by itself and by a child that steps back first."""
        child = await os.spawn(wait_for_mail, nice=9)
        found = [
            await refused(os.spawn(wait_for_mail, nice=4)),
            await refused(os.nice(4)),
            await refused(os.nice(4, pid=child)),
        ]
        await os.nice(5, pid=child)
        return found

    async def scenario() -> list[Any]:
        async with boot_kernel() as kernel:
            rights = Capabilities(programs=frozenset({"*"}), raise_priority=is_allowed)
            pid = await kernel.os.spawn(climber, capabilities=rights, nice=5)
            return await kernel.os.result(pid)

    expected = None if is_allowed else ["denied", "raise_priority", 5]
    assert asyncio.run(scenario()) == [expected] * 3


def test_who_stepped_back_needs_the_capability_to_come_forward_again(boot_kernel: Any) -> None:
    async def modest(os: OS) -> str:
        await os.nice(10)
        try:
            await os.nice(0)
        except SyscallError as problem:
            return problem.message
        return ""

    async def scenario() -> str:
        async with boot_kernel() as kernel:
            pid = await kernel.os.spawn(modest, capabilities=Capabilities(), nice=0)
            return await kernel.os.result(pid)

    message = asyncio.run(scenario())
    assert "Capabilities(raise_priority=True)" in message
    assert "ask for 10 or more" in message


def test_a_program_inherits_the_right_to_come_first(boot_kernel: Any) -> None:
    async def eager(os: OS) -> int:
        child = await os.spawn(wait_for_mail, nice=-10)
        return next(info.nice for info in (await os.ps()) if info.pid == child)

    async def scenario() -> int:
        async with boot_kernel() as kernel:
            return await kernel.os.result(await kernel.os.spawn(eager))

    assert asyncio.run(scenario()) == -10


@pytest.mark.parametrize(
    ("held", "asked", "is_granted"),
    [
        ("?", "*", False),
        ("a?b", "a*b", False),
        ("a*", "ab?", True),
        ("a*", "a*", True),
        ("a?b", "axb", True),
        ("*", "[ab]*", True),
    ],
)
def test_a_pattern_grants_no_more_than_its_holder_has(
    held: str, asked: str, is_granted: bool
) -> None:
    excess = Capabilities(tools=frozenset({asked})).exceeds(Capabilities(tools=frozenset({held})))
    assert (excess is None) == is_granted


def test_a_folder_is_no_pattern_for_others() -> None:
    held = Capabilities(folders_read=frozenset({"/data*"}))
    assert Capabilities(folders_read=frozenset({"/database"})).exceeds(held)
    assert not held.exceeds(held)
    assert not held.exceeds(ALL_CAPABILITIES)


def test_a_spent_quota_of_children_says_which_quota_and_how_to_raise_it(boot_kernel: Any) -> None:
    async def breeder(os: OS) -> None:
        for _ in range(3):
            await os.spawn(wait_for_mail)

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            pid = await kernel.os.spawn(breeder, quota=Quota(children=2))
            error = (await kernel.os.wait(pid)).error
            assert error.code == "quota_exceeded"
            assert error.fields["quota"] == "children"
            assert "Quota(children=...)" in error.message

    asyncio.run(scenario())


def test_a_grandchild_counts_against_its_grandparents_quota(boot_kernel: Any) -> None:
    async def child(os: OS) -> None:
        await os.spawn(wait_for_mail)

    async def parent(os: OS) -> str:
        exited = await os.wait(await os.spawn(child))
        return exited.error.code

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            pid = await kernel.os.spawn(parent, quota=Quota(children=1))
            assert await kernel.os.result(pid) == "quota_exceeded"

    asyncio.run(scenario())


def test_wall_time_runs_out(boot_kernel: Any) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        async with boot_kernel(clock=clock) as kernel:
            pid = await kernel.os.spawn(wait_for_mail, quota=Quota(wall_s=10))
            await settle()
            clock.advance(10)
            exited = await kernel.os.wait(pid)
            assert exited.status == "killed"
            assert exited.error.fields["quota"] == "wall_s"

    asyncio.run(scenario())


def test_ten_generations_of_children_end_in_order(boot_kernel: Any) -> None:
    async def nest(os: OS, depth: int) -> int:
        if depth == 0:
            return 0
        return 1 + await os.result(await os.spawn("nest", depth - 1))

    async def scenario() -> None:
        async with boot_kernel(programs={"nest": nest}) as kernel:
            assert await kernel.os.result(await kernel.os.spawn("nest", 10)) == 10
            assert len(kernel.table) == 1

    asyncio.run(scenario())
