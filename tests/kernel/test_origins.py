"""Which program a generation belongs to."""

from __future__ import annotations

import asyncio
from typing import Any

from llmos.kernel.origins import MOST_CONVERSATIONS, Origins
from llmos.kernel.process import INIT, Process
from llmos.syscalls.content import assistant, user


def process(boot_kernel: Any, **changes: Any) -> Process:
    """A process whose tree was made by hand."""
    made: list[Process] = []

    async def scenario() -> None:
        async with boot_kernel() as kernel:
            made.append(kernel.table.get(INIT))

    asyncio.run(scenario())
    (init,) = made
    fields = {"pid": 7, "parent": INIT, "program": "http.chat", "started_s": 5.0, **changes}
    return Process(
        pid=fields["pid"],
        parent=fields["parent"],
        program=fields["program"],
        args="",
        capabilities=init.capabilities,
        account=init.account,
        nice=0,
        started_s=fields["started_s"],
        boot="b",
        stdout=init.stdout,
        ancestor=fields.get("ancestor"),
        client=fields.get("client", ""),
    )


def test_a_descendant_belongs_to_the_process_below_init(boot_kernel: Any) -> None:
    root = process(boot_kernel)
    child = process(boot_kernel, pid=9, parent=7, started_s=8.0, ancestor=root.root)
    origin = Origins().of(child, [user("hello")], now_s=9.0)
    assert (origin.program, origin.arrived_s) == (7, 5.0)


def test_a_request_that_goes_on_with_a_conversation_is_the_same_program(boot_kernel: Any) -> None:
    origins = Origins()
    first = process(boot_kernel)
    asked = [user("a long story")]
    before = origins.of(first, asked, now_s=5.0)
    origins.answered(first, before, asked, assistant("once"))
    again = process(boot_kernel, pid=12, started_s=60.0)
    longer = [*asked, assistant("once"), user("and then?")]
    assert origins.of(again, longer, now_s=60.0) == before
    other = [*asked, assistant("twice"), user("and then?")]
    assert origins.of(again, other, now_s=60.0).program == 12


def test_the_same_words_of_another_client_are_another_program(boot_kernel: Any) -> None:
    origins = Origins()
    ours = process(boot_kernel, client="ann")
    asked = [user("hello")]
    origins.answered(ours, origins.of(ours, asked, 5.0), asked, assistant("hi"))
    theirs = process(boot_kernel, pid=12, client="bob", started_s=60.0)
    origin = origins.of(theirs, [*asked, assistant("hi"), user("more")], 60.0)
    assert (origin.program, origin.arrived_s, origin.client) == (12, 60.0, "bob")


def test_each_call_of_whoever_embeds_the_kernel_is_a_program_of_its_own(boot_kernel: Any) -> None:
    origins = Origins()
    init = process(boot_kernel, pid=INIT)
    one = origins.of(init, [user("a")], now_s=20.0)
    other = origins.of(init, [user("b")], now_s=30.0)
    assert one.program != other.program
    assert (one.arrived_s, other.arrived_s) == (20.0, 30.0)


def test_what_was_longest_unused_is_forgotten(boot_kernel: Any) -> None:
    origins = Origins()
    caller = process(boot_kernel)
    for number in range(MOST_CONVERSATIONS + 1):
        asked = [user(str(number))]
        origins.answered(caller, origins.of(caller, asked, 5.0), asked, assistant("yes"))
    again = process(boot_kernel, pid=12, started_s=60.0)

    def program(number: int) -> int:
        messages = [user(str(number)), assistant("yes"), user("and?")]
        return origins.of(again, messages, 60.0).program

    assert program(0) == 12
    assert program(1) == 7
