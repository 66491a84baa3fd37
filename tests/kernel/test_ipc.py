"""Mailboxes, topics, pipes, and waits that can never end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.kernel.clock import VirtualClock
from llmos.syscalls.calls import Close, Read
from llmos.syscalls.errors import SyscallError


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def idle(os: OS) -> Any:
    return (await os.receive()).body


def test_messages_arrive_in_order_and_can_be_picked_by_sender(boot_kernel: Any) -> None:
    async def speaker(os: OS, to: int, word: str) -> None:
        await os.send(to, word)

    async def listener(os: OS) -> list[str]:
        a = await os.spawn(speaker, os.pid, "a")
        b = await os.spawn(speaker, os.pid, "b")
        await os.results([a, b])
        second = (await os.receive(sender=b)).body
        first = (await os.receive()).body
        return [first, second]

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            assert await kernel.os.result(await kernel.os.spawn(listener)) == ["a", "b"]

    asyncio.run(scenario())


def test_a_full_mailbox_refuses_or_makes_the_sender_wait(boot_kernel: Any) -> None:
    async def flood(os: OS, to: int) -> int:
        for number in range(5):
            await os.send(to, number)
        return 5

    async def scenario() -> None:
        async with boot_kernel(mailbox_messages=2) as kernel:
            os = kernel.os
            flooder = await os.spawn(flood, 1)
            await settle()
            (info,) = [p for p in await os.ps() if p.pid == flooder]
            assert (info.state, info.waiting_on) == ("waiting_ipc", "room in the mailbox of 1")
            with pytest.raises(SyscallError, match="mailbox_full") as refusal:
                await os.send(1, "no room", on_full="refuse")
            assert refusal.value.is_retryable
            assert refusal.value.fields["limit"] == 2
            assert [(await os.receive()).body for _ in range(5)] == [0, 1, 2, 3, 4]
            assert await os.result(flooder) == 5

    asyncio.run(scenario())


def test_mail_from_one_sender_arrives_although_others_have_filled_the_mailbox(
    boot_kernel: Any,
) -> None:
    async def speaker(os: OS, to: int, words: list[str]) -> None:
        for word in words:
            await os.send(to, word)

    async def listener(os: OS) -> list[Any]:
        noisy = await os.spawn(speaker, os.pid, ["noise", "noise"])
        await os.wait(noisy)
        quiet = await os.spawn(speaker, os.pid, ["at last"])
        await settle()
        return [(await os.receive(sender=quiet)).body, (await os.wait(quiet)).status]

    async def scenario() -> None:
        async with boot_kernel(mailbox_messages=2) as kernel:
            assert await kernel.os.result(await kernel.os.spawn(listener)) == ["at last", "ok"]

    asyncio.run(scenario())


def test_a_sender_killed_as_room_appears_leaves_the_room_to_the_next(boot_kernel: Any) -> None:
    async def speaker(os: OS, to: int, word: str) -> None:
        await os.send(to, word)

    async def scenario() -> None:
        async with boot_kernel(mailbox_messages=1) as kernel:
            os = kernel.os
            _, doomed, _ = [
                await os.spawn(speaker, 1, word) for word in ("first", "lost", "second")
            ]
            await settle()
            assert (await os.receive()).body == "first"
            await os.signal(doomed, "KILL")
            assert (await os.receive(timeout_s=5)).body == "second"

    asyncio.run(scenario())


def test_a_receive_that_is_cancelled_loses_no_mail(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            os = kernel.os
            receiving = asyncio.ensure_future(os.receive())
            await settle()
            await os.send(1, "precious")
            receiving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await receiving
            assert (await os.receive()).body == "precious"

    asyncio.run(scenario())


def test_a_sender_that_waits_for_a_process_that_dies_is_told(boot_kernel: Any) -> None:
    async def deaf(os: OS) -> None:
        await os.sleep(1000)

    async def flood(os: OS, to: int) -> None:
        while True:
            await os.send(to, "more")

    async def scenario() -> None:
        async with boot_kernel(mailbox_messages=1) as kernel:
            target = await kernel.os.spawn(deaf)
            flooder = await kernel.os.spawn(flood, target)
            await settle()
            await kernel.os.signal(target, "KILL")
            exited = await kernel.os.wait(flooder)
            assert exited.error.code == "not_found"

    asyncio.run(scenario())


def test_receive_times_out_on_the_kernels_clock(boot_kernel: Any) -> None:
    async def patient(os: OS) -> None:
        await os.receive(timeout_s=3)

    async def scenario() -> None:
        clock = VirtualClock()
        async with boot_kernel(clock=clock) as kernel:
            pid = await kernel.os.spawn(patient)
            await settle()
            clock.advance(3)
            error = (await kernel.os.wait(pid)).error
            assert (error.code, error.fields["limit_s"]) == ("timeout", 3)

    asyncio.run(scenario())


def test_a_topic_reaches_its_subscribers_and_counts_the_full_ones(boot_kernel: Any) -> None:
    async def subscriber(os: OS, ready: int) -> str:
        await os.subscribe("news")
        await os.send(ready, "subscribed")
        return (await os.receive(topic="news")).body

    async def scenario() -> None:
        async with boot_kernel(mailbox_messages=1) as kernel:
            os = kernel.os
            await os.subscribe("news")
            readers = [await os.spawn(subscriber, 1) for _ in range(3)]
            for _ in readers:
                await os.receive()
            await settle()
            await os.send(1, "fills the mailbox of init")
            sent = await os.publish("news", "hello")
            assert (sent.receivers, sent.dropped) == (3, 1)
            assert await os.results(readers) == ["hello"] * 3

    asyncio.run(scenario())


def test_two_processes_that_wait_for_each_other_are_both_told(boot_kernel: Any) -> None:
    async def side(os: OS) -> str:
        other = (await os.receive(sender=1)).body
        try:
            await os.receive(sender=other)
        except SyscallError as problem:
            return f"{problem.code} {sorted(problem.fields['cycle'])}"
        return "no deadlock"

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            os = kernel.os
            one, two = await os.spawn(side), await os.spawn(side)
            await os.send(one, two)
            await os.send(two, one)
            assert await os.results([one, two]) == [f"deadlock {[one, two]}"] * 2
            assert kernel.waits.edges() == []

    asyncio.run(scenario())


def test_a_parent_waiting_for_a_child_that_waits_for_it_is_a_deadlock(boot_kernel: Any) -> None:
    async def child(os: OS, parent: int) -> None:
        await os.receive(sender=parent)

    async def parent(os: OS) -> str:
        pid = await os.spawn(child, os.pid)
        try:
            await os.wait(pid)
        except SyscallError as problem:
            return problem.code
        return "no deadlock"

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            assert await kernel.os.result(await kernel.os.spawn(parent)) == "deadlock"

    asyncio.run(scenario())


def test_a_wait_with_a_time_limit_is_no_deadlock(boot_kernel: Any) -> None:
    async def child(os: OS, parent: int) -> str:
        return (await os.receive(sender=parent)).body

    async def parent(os: OS) -> str:
        pid = await os.spawn(child, os.pid)
        try:
            await os.wait(pid, timeout_s=1)
        except SyscallError as problem:
            assert problem.code == "timeout"
        await os.send(pid, "late")
        return await os.result(pid)

    async def scenario() -> None:
        clock = VirtualClock()
        async with boot_kernel(clock=clock) as kernel:
            pid = await kernel.os.spawn(parent)
            await settle()
            clock.advance(1)
            assert await kernel.os.result(pid) == "late"

    asyncio.run(scenario())


async def count_to(os: OS, end: int) -> None:
    for number in range(end):
        await os.print(number)


async def add_up(os: OS) -> int:
    return sum(int(line) for line in (await os.read_input()).split())


def test_a_pipe_carries_output_to_input_with_backpressure(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(pipe_bytes=16) as kernel:
            source = await kernel.os.spawn(count_to, 1000)
            sink = await kernel.os.spawn(add_up, stdin_from=source)
            assert await kernel.os.result(sink) == sum(range(1000))
            assert (await kernel.os.wait(source)).status == "ok"

    asyncio.run(scenario())


def test_what_was_written_before_a_pipe_was_attached_is_not_lost(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            source = await kernel.os.spawn(count_to, 10)
            await settle()
            sink = await kernel.os.spawn(add_up, stdin_from=source)
            assert await kernel.os.result(sink) == 45
            with pytest.raises(SyscallError, match="busy"):
                await kernel.os.spawn(add_up, stdin_from=source)

    asyncio.run(scenario())


def test_a_writer_learns_that_its_reader_is_gone(boot_kernel: Any) -> None:
    async def endless(os: OS) -> None:
        while True:
            await os.print("y")

    async def head(os: OS) -> str:
        return (await os.read(max_bytes=2)).text

    async def scenario() -> None:
        async with boot_kernel(pipe_bytes=8) as kernel:
            source = await kernel.os.spawn(endless, is_interactive=False)
            sink = await kernel.os.spawn(head, stdin_from=source)
            assert await kernel.os.result(sink) == "y\n"
            assert (await kernel.os.wait(source)).error.code == "broken_pipe"

    # `endless` must reach the pipe before its console fills with lines that nobody reads.
    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_an_embedder_feeds_and_reads_an_interactive_process(boot_kernel: Any) -> None:
    async def shout(os: OS) -> None:
        while True:
            data = await os.read()
            await os.write(data.text.upper())
            if data.is_eof:
                return

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            pid = await kernel.os.spawn(shout, is_interactive=True)
            await kernel.feed(pid, b"hello ")
            await kernel.feed(pid, b"world")
            kernel.close_input(pid)
            assert b"".join([data async for data in kernel.output(pid)]) == b"HELLO WORLD"
            assert (await kernel.os.wait(pid)).status == "ok"
            with pytest.raises(SyscallError):
                await kernel.feed(pid, b"more")

    asyncio.run(scenario())


def test_standard_input_is_at_its_end_unless_something_feeds_it(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel() as kernel:
            assert await kernel.os.result(await kernel.os.spawn(add_up)) == 0

    asyncio.run(scenario())


def test_a_reader_that_closes_its_input_is_at_the_end_of_it(boot_kernel: Any) -> None:
    async def reader(os: OS) -> bool:
        reading = asyncio.ensure_future(os.call(Read()))
        await settle()
        await os.call(Close(fd=0))
        return (await reading).is_eof and (await os.call(Read())).is_eof

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            assert await kernel.os.result(await kernel.os.spawn(reader, is_interactive=True))

    asyncio.run(scenario())
