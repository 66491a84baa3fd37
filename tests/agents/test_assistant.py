"""The assistant and the tools by which a model manages its memory."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from llmos.agents.handle import OS
from llmos.agents.memory_tools import answer_request, memory_tools
from llmos.syscalls.content import ToolRequest

FACT = "My dog is called Biscuit and he is nine."


def one_session(boot_agents: Any, lines: list[str], script: Any, **options: Any) -> list[str]:
    """A start of the kernel, some lines to the assistant, and an end; the lines that it said."""

    async def session() -> str:
        async with boot_agents(script) as kernel:
            pid = await kernel.os.spawn("assistant", is_interactive=True, **options)
            await kernel.feed(pid, "".join(f"{line}\n" for line in lines).encode())
            kernel.close_input(pid)
            said = b"".join([piece async for piece in kernel.output(pid)])
            assert await kernel.os.result(pid) == len(lines)
            return said.decode()

    return asyncio.run(session()).splitlines()


def test_it_goes_on_after_a_restart_with_what_has_long_left_the_window(boot_agents: Any) -> None:
    asked: list[str] = []

    def script(text: str) -> str:
        asked.append(text)
        return "I see."

    chatter = [f"Line {n}. The weather was grey today, with some wind." for n in range(12)]
    options = {"user": "anna", "budget_tokens": 800, "max_tokens": 16}
    assert one_session(boot_agents, [FACT, *chatter], script, **options) == ["I see."] * 13
    assert one_session(boot_agents, ["What is my dog called?"], script, **options) == ["I see."]
    assert FACT in asked[-1]
    one_session(boot_agents, ["What is my dog called?"], script, user="otto")
    assert asked[-1] == "What is my dog called?"


def test_a_model_that_uses_tools_edits_what_it_always_knows(boot_agents: Any) -> None:
    request = {"name": "core_memory_append", "arguments": {"text": "The dog is called Biscuit."}}

    def script(text: str) -> str:
        if text == FACT:
            return f"<tool_call>{json.dumps(request)}</tool_call>"
        return f"Done after: {text}"

    lines = one_session(boot_agents, [FACT], script, with_tools=True, max_tokens=120)
    assert lines[0].startswith("Done")

    async def core() -> str:
        async with boot_agents() as kernel:
            return await kernel.os.core_memory(namespace="user-me")

    assert asyncio.run(core()) == "The dog is called Biscuit."


def test_the_tools_remember_recall_and_tell_the_model_what_was_wrong(boot_agents: Any) -> None:
    tools = memory_tools("n")

    async def scenario() -> None:
        async with boot_agents() as kernel:
            os: OS = kernel.os

            async def ask(name: str, **arguments: Any) -> str:
                request = ToolRequest(id="1", name=name, arguments=arguments)
                return (await answer_request(os, tools, request)).text

            assert await ask("remember", text=FACT) == "Remembered."
            assert await ask("remember", text=FACT) == "That was known already."
            assert FACT in await ask("recall", query="dog called")
            assert "Anna" in await ask("core_memory_append", text="The user is Anna.")
            assert "Anne" in await ask("core_memory_replace", old="Anna", new="Anne")
            assert "stands 0 times" in await ask("core_memory_replace", old="Berta", new="")
            assert "wrong arguments" in await ask("remember")
            assert "use remember" in await ask("forget_all")

    asyncio.run(scenario())
