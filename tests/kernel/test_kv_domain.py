"""Who may reuse whose KV, through the whole kernel on the scripted device."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.drivers.contract import ModelSpec
from llmos.drivers.scripted import Scripted
from llmos.kernel.kv_domain import PublicPrefixes
from llmos.kernel.settings import KVSettings, ModelSetting
from llmos.kernel.stepper import WORTH_WAITING_TOKENS
from llmos.syscalls.content import Message, system, user
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ToolSpec

RULES = system("Answer in one short sentence, in plain words, and never speak of the harbour.")
SECRET = "The launch code of the copper bridge is seven four nine two, and nobody else knows it."


def models(**spec: Any) -> dict[str, ModelSetting]:
    sizes = {"sequences": 8, **spec}
    return {
        "scripted": ModelSetting(
            "scripted",
            "scripted",
            "scripted",
            lambda: Scripted(ModelSpec("scripted", Path("scripted"), **sizes)),
        )
    }


async def cached(os: OS, text: str = SECRET) -> list[int]:
    """How long the prompt was, and how much of it needed no prefill."""
    answer = await os.generate([RULES, user(text)], max_tokens=3)
    return [answer.usage.prompt_tokens, answer.usage.cached_tokens]


async def cached_for_a_child(os: OS) -> list[int]:
    """The same, of a grandchild, after this process has asked."""
    await cached(os)
    child = await os.spawn(cached)
    return await os.result(child)


async def figures(kernel: Any, program: Any) -> list[int]:
    return await kernel.os.result(await kernel.os.spawn(program))


def public_tokens(text: str = "") -> int:
    """Tokens that every conversation under the rules begins with."""
    driver = Scripted()
    one, other = driver.render([RULES, user("a")]), driver.render([RULES, user("b")])
    return next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)


def test_another_lineage_has_only_the_public_beginning(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=models()) as kernel:
            assert (await figures(kernel, cached))[1] == 0
            assert (await figures(kernel, cached))[1] == public_tokens()

    asyncio.run(scenario())


def test_a_lineage_shares_all(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=models()) as kernel:
            total, reused = await figures(kernel, cached_for_a_child)
            assert reused == total - 1

    asyncio.run(scenario())


def test_a_lineage_that_has_ended_holds_only_its_public_beginning(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=models()) as kernel:
            await figures(kernel, cached)
            engine = await kernel.devices.engine(None)
            held = await engine.on_device(lambda driver: [driver.length(s) for s in range(8)])
            assert sum(held) == public_tokens()

    asyncio.run(scenario())


def test_init_and_a_lineage_have_only_the_public_beginning_in_common(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=models()) as kernel:
            await cached(kernel.os)
            assert (await figures(kernel, cached))[1] == public_tokens()
            total, reused = await cached(kernel.os)
            assert reused == total - 1

    asyncio.run(scenario())


@pytest.mark.parametrize(("sharing", "whole"), [("all", True), ("none", False)])
def test_sharing_can_be_had_with_everybody_or_with_nobody(
    boot_kernel: Any, sharing: Any, whole: bool
) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=models(), kv=KVSettings(sharing=sharing)) as kernel:
            await figures(kernel, cached)
            total, reused = await figures(kernel, cached)
            assert reused == (total - 1 if whole else 0)
            total, reused = await figures(kernel, cached_for_a_child)
            assert reused == (total - 1 if whole else 0)

    asyncio.run(scenario())


def test_a_stranger_at_the_same_time_waits_for_the_public_beginning_only(boot_kernel: Any) -> None:
    async def scenario() -> None:
        async with boot_kernel(models=models(batch_tokens=32)) as kernel:
            pids = [await kernel.os.spawn(cached) for _ in range(4)]
            first, *others = sorted(reused for _, reused in await kernel.os.results(pids))
            assert first == 0
            # Nobody waits for the last few.
            assert all(0 <= public_tokens() - reused < WORTH_WAITING_TOKENS for reused in others)

    asyncio.run(scenario())


def test_what_a_kernel_leaves_on_disk_serves_the_next_one(boot_kernel: Any) -> None:
    async def scenario() -> None:
        kept = KVSettings(disk_bytes=10**7)
        async with boot_kernel(models=models(), kv=kept) as kernel:
            first = await kernel.os.generate([RULES, user(SECRET)], max_tokens=30)
        async with boot_kernel(models=models(), kv=kept) as kernel:
            # Computing is cheap for this device, so much so that restoring must be made to pay.
            engine = await kernel.devices.engine(None)
            await engine.on_device(lambda driver: make_dear(engine))
            second = await kernel.os.generate([RULES, user(SECRET)], max_tokens=30)
        assert second.usage.cached_tokens == second.usage.prompt_tokens - 1
        assert second.text == first.text

    asyncio.run(scenario())


def make_dear(engine: Any) -> None:
    for rows in (1, 512) * 50:
        engine._stepper._pace.observe(rows=0, prompt_tokens=rows, seconds=rows * 1.0)


def test_the_next_kernel_knows_nothing_private_of_a_lineage(
    boot_kernel: Any, tmp_path: Path
) -> None:
    async def scenario() -> None:
        kept = KVSettings(disk_bytes=10**7)
        async with boot_kernel(models=models(), kv=kept) as kernel:
            await figures(kernel, cached)

    asyncio.run(scenario())
    files = list((tmp_path / "kv").rglob("*.kv"))
    assert files
    for file in files:
        assert "launch code".encode("utf-16-le") not in file.read_bytes()


def render(messages: Any, tools: Any = ()) -> list[int]:
    return Scripted().render(messages, tools=tools)


def test_nothing_said_in_a_conversation_is_public() -> None:
    prefixes = PublicPrefixes()
    conversation = [RULES, user(SECRET)]
    prompt = render(conversation)
    count = prefixes.tokens(prompt, conversation, (), model="scripted", render=render)
    assert count == public_tokens()
    assert bytes(token for token in prompt[:count] if token < 256).endswith(b"user\n")


def test_a_later_system_message_is_private() -> None:
    conversation = [user("Hello."), system(SECRET)]
    prompt = render(conversation)
    count = PublicPrefixes().tokens(prompt, conversation, (), model="scripted", render=render)
    assert b"launch" not in bytes(token for token in prompt[:count] if token < 256)


def test_tools_make_another_beginning() -> None:
    asked: list[int] = []

    def counted(messages: Any) -> list[int]:
        asked.append(len(messages))
        return render(messages)

    prefixes = PublicPrefixes()
    prompt = render([RULES, user(SECRET)])
    tool = ToolSpec(name="clock", description="tells the time", parameters={"type": "object"})
    for specs in ((), (), (tool,), (tool,)):
        prefixes.tokens(prompt, [RULES], specs, model="scripted", render=counted)
    assert asked == [2, 2]


def test_a_template_that_refuses_an_empty_conversation_makes_nothing_public(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(messages: list[Message] | Any) -> list[int]:
        raise SyscallError("invalid", "messages: this template wants a question")

    with caplog.at_level(logging.DEBUG):
        found = PublicPrefixes().tokens([1, 2, 3], [RULES], (), model="m", render=refuse)
    assert found == 0
    assert "across programs" in caplog.text
