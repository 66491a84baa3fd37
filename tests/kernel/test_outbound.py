"""A model on another machine behind the kernel: order, budget, cancellation, failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.drivers.chat_model import (
    ChatEnd,
    ChatRequest,
    Conversation,
    PassingError,
    TooLongError,
    UnsupportedError,
)
from llmos.drivers.contract import Abilities, DeviceError, ModelInfo
from llmos.kernel.budget import Prices
from llmos.kernel.clock import VirtualClock
from llmos.kernel.kernel import Kernel
from llmos.kernel.settings import ModelSetting, RemoteSetting
from llmos.memory.spending import SPENDING_FILE
from llmos.syscalls.calls import Generate
from llmos.syscalls.content import ToolRequest, assistant, user
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import ChoiceConstraint
from llmos.syscalls.results import Delta, Generated, ToolSpec

BootKernel = Callable[..., AbstractAsyncContextManager[Kernel]]
WINDOW = 256
Script = Callable[[ChatRequest], list[str | ChatEnd | Exception]]


class ScriptedChat:
    """A `ChatModel` that answers by a script; each piece waits until the test allows it."""

    def __init__(self, script: Script, *, is_paced: bool = False) -> None:
        self.requests: list[ChatRequest] = []
        self.under_way = 0
        self.most_at_once = 0
        self.closed_early = 0
        self.opened = 0
        self.open_error: Exception | None = None
        self._script = script
        self._is_paced = is_paced
        self.allowed = asyncio.Semaphore(0)
        self.begun = asyncio.Semaphore(0)
        self.idle = asyncio.Event()  # a request has ended

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name="chat", driver="remote", device="server:1", architecture="", parameters=0,
            vocabulary=0, context_tokens=WINDOW, sequences=2, batch_tokens=WINDOW,
            kv_bytes_per_token=0, end_tokens=frozenset(), weights_format="",
            abilities=Abilities(can_attach=False, counts_exactly=False),
        )  # fmt: skip

    tokenizer = "words"

    def tokenize(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def render(self, conversation: Conversation) -> list[int]:
        texts = [message.text for message in conversation.messages]
        return self.tokenize(" ".join(texts) + (conversation.prompt or ""))

    def check(self, request: ChatRequest) -> None:
        if request.constraint is not None:
            raise UnsupportedError("no means for it", field="constraint")

    async def open(self) -> None:
        self.opened += 1
        if self.open_error is not None:
            raise self.open_error

    async def stream(self, request: ChatRequest) -> AsyncGenerator[str | ChatEnd]:
        self.requests.append(request)
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        self.begun.release()
        is_over = False
        try:
            for piece in self._script(request):
                if self._is_paced:
                    await self.allowed.acquire()
                if isinstance(piece, Exception):
                    is_over = True
                    raise piece
                yield piece
            is_over = True
        finally:
            self.under_way -= 1
            self.idle.set()
            self.closed_early += not is_over

    async def close(self) -> None:
        pass


def said(text: str, **end: Any) -> list[str | ChatEnd | Exception]:
    words = text.split(" ")
    pieces = [word if word is words[-1] else f"{word} " for word in words]
    return [*pieces, ChatEnd("stop", **end)]


def paced(text: str) -> Callable[[], ScriptedChat]:
    return lambda: ScriptedChat(lambda asked: said(text), is_paced=True)


def remote(chat: ScriptedChat, *, prices: Prices | None = None, at_once: int = 2) -> ModelSetting:
    setting = RemoteSetting(lambda: chat, concurrency=at_once, prices=prices)
    return ModelSetting(name="far", base="far", driver="remote", remote=setting)


def run(
    boot_kernel: BootKernel,
    make: Callable[[], ScriptedChat],
    body: Callable[[OS, ScriptedChat, Any], Coroutine[Any, Any, None]],
    *,
    policy: str = "fifo",
    clock: VirtualClock | None = None,
    max_queued: int = 10_000,
    **setting: Any,
) -> None:
    async def scenario() -> None:
        chat = make()
        async with boot_kernel(
            models={"far": remote(chat, **setting)},
            policy=policy,
            clock=clock,
            max_queued=max_queued,
        ) as kernel:
            await body(kernel.os, chat, kernel)

    asyncio.run(scenario())


async def counts(os: OS) -> tuple[int, int]:
    """Requests at the server and before it."""
    device = (await os.stat()).devices[0]
    return device.running, device.waiting


async def until(os: OS, *, running: int, waiting: int) -> None:
    for _ in range(1000):
        if await counts(os) == (running, waiting):
            return
        await asyncio.sleep(0)
    raise AssertionError(f"not {running} running and {waiting} waiting: {await counts(os)}")


async def refusal(work: Awaitable[Any]) -> SyscallError:
    with pytest.raises(SyscallError) as refused:
        await work
    return refused.value


def test_an_answer_carries_the_servers_counts_and_no_token_ids(boot_kernel: BootKernel) -> None:
    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        found = await os.generate("how are you")
        assert found.text == "very well"
        assert (found.model, found.device) == ("far", "server:1")
        assert (found.usage.prompt_tokens, found.usage.cached_tokens) == (40, 30)
        assert found.usage.completion_tokens == 7
        assert found.token_ids == ()
        (init,) = await os.ps()
        assert init.accounting.tokens_in == 40
        assert init.accounting.tokens_out == 7

    script = said("very well", prompt_tokens=40, cached_tokens=30, completion_tokens=7)
    run(boot_kernel, lambda: ScriptedChat(lambda asked: script), body)


def test_counts_that_are_not_told_are_made_here(boot_kernel: BootKernel) -> None:
    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        usage = (await os.generate("how are you")).usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (3, 2)
        tokens = await os.tokenize("one two")
        assert (tokens.count, tokens.is_exact) == (2, False)

    run(boot_kernel, lambda: ScriptedChat(lambda asked: said("very well")), body)


def test_an_answer_is_streamed_and_cut_at_a_stop_string(boot_kernel: BootKernel) -> None:
    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        pieces = [piece async for piece in os.stream("hi", stop=("three",))]
        texts = [piece.text for piece in pieces if isinstance(piece, Delta)]
        assert "".join(texts) == "one two "
        assert isinstance(pieces[-1], Generated)
        assert pieces[-1].finish == "stop"
        assert chat.closed_early == 1

    run(boot_kernel, lambda: ScriptedChat(lambda asked: said("one two three four")), body)


def test_a_context_is_sent_again_as_messages(boot_kernel: BootKernel) -> None:
    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        async def talk(os: OS) -> None:
            context = await os.context_open([user("first")])
            await os.generate("second", context=context)
            await os.generate("third", context=context)

        await os.result(await os.spawn(talk))
        sent = [message.text for message in chat.requests[-1].conversation.messages]
        assert sent == ["first", "second", "fine", "third"]
        assert len({request.session for request in chat.requests}) == 1

    run(boot_kernel, lambda: ScriptedChat(lambda asked: said("fine")), body)


def test_tool_requests_that_the_server_read_are_the_messages(boot_kernel: BootKernel) -> None:
    request = ToolRequest(id="c1", name="clock", arguments={})
    end = ChatEnd("tool_requests", (request,))
    spec = ToolSpec(name="clock", description="", parameters={})

    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        call = Generate(messages=(user("time?"),), tool_specs=(spec,))
        found = await kernel.inference.generate(kernel.init, call)
        assert found.finish == "tool_requests"
        assert found.message.tool_requests == (request,)
        assert chat.requests[0].conversation.tools == [spec]

    run(boot_kernel, lambda: ScriptedChat(lambda asked: [end]), body)


def test_more_than_the_server_may_be_asked_wait_in_the_policys_order(
    boot_kernel: BootKernel,
) -> None:
    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        async def ask(os: OS, name: str) -> str:
            return (await os.generate(name)).text

        first = await os.spawn(ask, "first")
        await chat.begun.acquire()
        late = await os.spawn(ask, "late", nice=5)
        soon = await os.spawn(ask, "soon", nice=-5)
        await until(os, running=1, waiting=2)
        for _ in range(100):
            chat.allowed.release()
        await os.results([first, late, soon])
        asked = [request.conversation.messages[0].text for request in chat.requests]
        assert asked == ["first", "soon", "late"]
        assert chat.most_at_once == 1

    run(
        boot_kernel,
        lambda: ScriptedChat(lambda asked: said("yes"), is_paced=True),
        body,
        policy="priority",
        at_once=1,
    )


def test_a_stopped_program_sends_nothing_new(boot_kernel: BootKernel) -> None:
    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        async def ask(os: OS) -> str:
            return (await os.generate("held")).text

        busy = asyncio.create_task(os.generate("busy"))
        await chat.begun.acquire()
        pid = await os.spawn(ask)
        await until(os, running=1, waiting=1)
        await os.signal(pid, "STOP")
        for _ in range(100):
            chat.allowed.release()
        await busy
        assert len(chat.requests) == 1
        await os.signal(pid, "CONT")
        assert await os.result(pid) == "yes"

    run(
        boot_kernel,
        lambda: ScriptedChat(lambda asked: said("yes"), is_paced=True),
        body,
        at_once=1,
    )


def test_a_kill_ends_the_request_at_the_server(boot_kernel: BootKernel) -> None:
    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        async def ask(os: OS) -> str:
            return (await os.generate("hi")).text

        pid = await os.spawn(ask)
        await chat.begun.acquire()
        await os.signal(pid, "KILL")
        assert (await os.wait(pid)).status == "killed"
        await chat.idle.wait()
        assert chat.closed_early == 1
        await until(os, running=0, waiting=0)

    run(boot_kernel, lambda: ScriptedChat(lambda asked: said("yes"), is_paced=True), body)


def test_a_reader_that_goes_away_ends_the_request(boot_kernel: BootKernel) -> None:
    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        for _ in range(2):
            chat.allowed.release()
        async with aclosing(os.stream("hi")) as answer:
            async for _piece in answer:
                break
        await chat.idle.wait()
        assert chat.closed_early == 1

    script = said("one two three four five")
    run(boot_kernel, lambda: ScriptedChat(lambda asked: script, is_paced=True), body)


def test_a_slow_reader_keeps_no_place_at_the_server(boot_kernel: BootKernel) -> None:
    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        answer = os.stream("slow")
        pieces = [await anext(answer)]
        assert (await os.generate("other")).text == "one two three"
        await until(os, running=0, waiting=0)
        pieces += [piece async for piece in answer]
        texts = [piece.text for piece in pieces if isinstance(piece, Delta)]
        assert "".join(texts) == "one two three"
        assert isinstance(pieces[-1], Generated)

    script = said("one two three")
    run(boot_kernel, lambda: ScriptedChat(lambda asked: script), body, at_once=1)


def test_a_spent_budget_refuses_and_cuts(boot_kernel: BootKernel) -> None:
    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        found = await os.generate("one two", max_tokens=100)
        assert chat.requests[0].max_tokens == 8
        assert found.finish == "quota"
        refused = await refusal(os.generate("three"))
        assert refused.code == "quota_exceeded"
        assert refused.fields["quota"] == "budget_tokens"
        device = (await os.stat()).devices[0]
        assert device.spent_tokens == 10
        assert device.spent == pytest.approx(0.018)

    end = ChatEnd("length", prompt_tokens=2, completion_tokens=8)
    prices = Prices(price_in=1000, price_out=2000, tokens=10)
    run(boot_kernel, lambda: ScriptedChat(lambda asked: ["a", end]), body, prices=prices)


def test_a_budget_outlives_the_kernel(boot_kernel: BootKernel) -> None:
    end = ChatEnd("length", prompt_tokens=2, completion_tokens=8)
    prices = Prices(price_in=1000, price_out=2000, tokens=10)

    async def spend(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        await os.generate("hi", max_tokens=500)

    async def broke(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        refused = await refusal(os.generate("hi"))
        assert (refused.code, refused.fields["used"]) == ("quota_exceeded", 10)
        assert (await os.stat()).devices[0].spent == pytest.approx(0.018)

    for body in (spend, broke):
        run(boot_kernel, lambda: ScriptedChat(lambda asked: ["a", end]), body, prices=prices)


def test_a_budget_whose_record_is_damaged_refuses_the_model(
    boot_kernel: BootKernel, tmp_path: Path
) -> None:
    (tmp_path / SPENDING_FILE).write_bytes(b"rubbish" * 1000)

    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        assert (await refusal(os.generate("hi"))).code == "storage"

    run(boot_kernel, lambda: ScriptedChat(lambda asked: said("a")), body, prices=Prices(tokens=10))


def test_what_was_never_begun_costs_nothing(boot_kernel: BootKernel) -> None:
    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        refused = await refusal(os.generate("hi", constraint=ChoiceConstraint(choices=("a", "b"))))
        assert refused.code == "not_available"
        failed = await refusal(os.generate("hi"))
        assert (failed.code, failed.is_retryable) == ("device", True)
        assert (await os.stat()).devices[0].spent_tokens == 0
        (init,) = await os.ps()
        assert init.accounting.tokens_out == 0

    prices = Prices(tokens=1000)
    script: list[Any] = [PassingError("busy there")]
    run(boot_kernel, lambda: ScriptedChat(lambda asked: script), body, prices=prices)


def test_a_lost_server_fails_what_waits_and_is_found_again(boot_kernel: BootKernel) -> None:
    lost = [True]

    def script(asked: ChatRequest) -> list[str | ChatEnd | Exception]:
        return [DeviceError("gone", is_fatal=True)] if lost[0] else said("back")

    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        failed = await asyncio.gather(
            *(refusal(os.generate(text)) for text in ("a", "b", "c")), return_exceptions=True
        )
        assert [one.code for one in failed if isinstance(one, SyscallError)] == ["device"] * 3
        assert (await os.stat()).devices[0].state == "down"
        chat.open_error = DeviceError("still gone")
        assert "still gone" in (await refusal(os.generate("d"))).message
        lost[0], chat.open_error = False, None
        assert (await os.generate("e")).text == "back"
        assert (await os.stat()).devices[0].state == "ready"

    run(boot_kernel, lambda: ScriptedChat(script), body, at_once=1)


def test_a_prompt_that_the_server_finds_too_long_overflows(boot_kernel: BootKernel) -> None:
    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        assert (await refusal(os.generate("hi"))).code == "context_overflow"
        assert (await refusal(os.generate("word " * WINDOW))).code == "context_overflow"
        assert len(chat.requests) == 1

    script: list[Any] = [TooLongError("too long", field="messages")]
    run(boot_kernel, lambda: ScriptedChat(lambda asked: script), body)


def test_a_failure_of_the_drivers_own_code_is_a_device_error(boot_kernel: BootKernel) -> None:
    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        failed = await refusal(os.generate("hi"))
        assert failed.code == "device"
        assert "ZeroDivisionError" in failed.message

    run(boot_kernel, lambda: ScriptedChat(lambda asked: [ZeroDivisionError("oops")]), body)


def test_stopping_the_kernel_ends_what_is_under_way(boot_kernel: BootKernel) -> None:
    async def scenario() -> None:
        chat = ScriptedChat(lambda asked: said("never"), is_paced=True)
        async with boot_kernel(models={"far": remote(chat, at_once=1)}) as kernel:

            async def ask(os: OS) -> str:
                return (await os.generate("hi")).text

            for _ in range(3):
                await kernel.os.spawn(ask)
            await chat.begun.acquire()
        assert chat.under_way == 0

    asyncio.run(scenario())


def test_a_message_of_the_assistant_is_sent_as_such(boot_kernel: BootKernel) -> None:
    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        await os.generate([user("a"), assistant("b"), user("c")])
        roles = [message.role for message in chat.requests[0].conversation.messages]
        assert roles == ["user", "assistant", "user"]

    run(boot_kernel, lambda: ScriptedChat(lambda asked: said("fine")), body)


def test_a_request_past_its_deadline_is_cancelled_and_its_stream_stops(
    boot_kernel: BootKernel,
) -> None:
    clock = VirtualClock()

    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        chat.allowed.release()
        answer = os.stream("hi", deadline_s=5.0)
        assert await anext(answer) == Delta(text="one ")
        clock.advance(4.9)
        await until(os, running=1, waiting=0)
        clock.advance(0.2)
        dropped = await refusal(anext(answer))
        assert (dropped.code, dropped.is_retryable) == ("timeout", True)
        assert dropped.fields == {"device": "far", "tokens": 1}
        assert "deadline" in dropped.message
        assert (chat.under_way, chat.closed_early) == (0, 1)
        # What was read and written is paid for, the rest of what was set aside is free again.
        assert (await os.stat()).devices[0].spent_tokens == 2
        await until(os, running=0, waiting=0)

    run(boot_kernel, paced("one two three"), body, clock=clock, prices=Prices(tokens=1000))


def test_what_waits_for_a_server_past_its_deadline_is_never_sent(boot_kernel: BootKernel) -> None:
    clock = VirtualClock()

    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        busy = asyncio.create_task(os.generate("busy"))
        await chat.begun.acquire()
        hurried = asyncio.create_task(os.generate("hurry", deadline_s=5.0))
        patient = asyncio.create_task(os.generate("patient", deadline_s=50.0))
        await until(os, running=1, waiting=2)
        clock.advance(5.0)
        dropped = await refusal(hurried)
        assert (dropped.code, dropped.fields["tokens"]) == ("timeout", 0)
        await until(os, running=1, waiting=1)
        for _ in range(100):
            chat.allowed.release()
        assert [(await one).text for one in (busy, patient)] == ["yes", "yes"]
        asked = [request.conversation.messages[0].text for request in chat.requests]
        assert asked == ["busy", "patient"]
        clock.advance(100.0)  # a deadline that was kept says nothing any more
        await until(os, running=0, waiting=0)

    run(boot_kernel, paced("yes"), body, clock=clock, at_once=1)


def test_a_stopped_program_is_held_to_its_deadline_too(boot_kernel: BootKernel) -> None:
    clock = VirtualClock()

    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        async def ask(os: OS) -> str:
            return (await os.generate("held", deadline_s=5.0)).text

        busy = asyncio.create_task(os.generate("busy"))
        await chat.begun.acquire()
        pid = await os.spawn(ask)
        await until(os, running=1, waiting=1)
        await os.signal(pid, "STOP")
        clock.advance(6.0)
        await until(os, running=1, waiting=0)
        await os.signal(pid, "CONT")
        assert (await refusal(os.result(pid))).code == "timeout"
        for _ in range(100):
            chat.allowed.release()
        await busy

    run(boot_kernel, paced("yes"), body, clock=clock, at_once=1)


def test_a_full_queue_before_a_server_says_when_to_come_back(boot_kernel: BootKernel) -> None:
    clock = VirtualClock()

    async def body(os: OS, chat: ScriptedChat, kernel: Any) -> None:
        async def fill() -> list[asyncio.Task[Generated]]:
            tasks = [asyncio.create_task(os.generate(name)) for name in ("a", "b")]
            await until(os, running=1, waiting=1)
            return tasks

        tasks = await fill()
        refused = await refusal(os.generate("c"))
        assert (refused.code, refused.is_retryable) == ("busy", True)
        assert refused.fields == {"device": "far", "limit": 2, "retry_after_s": 1.0}
        for task in tasks:  # the two end three seconds from each other
            for _ in range(2):
                chat.allowed.release()
            await task
            clock.advance(3.0)
        tasks = await fill()
        assert (await refusal(os.generate("c"))).fields["retry_after_s"] == 3.0
        for _ in range(100):
            chat.allowed.release()
        await asyncio.gather(*tasks)

    run(boot_kernel, paced("yes"), body, clock=clock, max_queued=2, at_once=1)
