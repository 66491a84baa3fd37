"""The tool agent and its practice: what counts as a call, what is learned from, who helps whom."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

import llmos
from llmos.agents.tool_agent import TOOL_NAMES
from llmos.agents.tool_tasks import TOOLS, tasks
from llmos.drivers.scripted import Script
from llmos.kernel.kernel import Kernel
from llmos.syscalls.errors import SyscallError

Boot = Callable[..., AbstractAsyncContextManager[Kernel]]


def call(tool: str, **arguments: Any) -> str:
    return json.dumps({"tool": tool, "arguments": arguments}, separators=(",", ":"))


@pytest.fixture
def run(boot_agents: Boot) -> Callable[..., Any]:
    """Run a program with the practice's tools; `script` answers what the user says."""

    async def main(program: str, args: tuple[Any, ...], script: Script, options: Any) -> Any:
        async with boot_agents(script) as kernel:
            for tool in TOOLS:
                kernel.tools.add(tool)
            return await kernel.os.result(await kernel.os.spawn(program, *args, **options))

    def start(program: str, *args: Any, script: Script, **options: Any) -> Any:
        return asyncio.run(main(program, args, script, options))

    return start


def test_the_agent_makes_the_call_that_it_says(run: Callable[..., Any]) -> None:
    said = call("weekday", date="2024-02-29")
    solved = run("tool-agent", "Which day is 2024-02-29?", script=lambda _: said)
    assert solved == {
        "said": said,
        "tool": "weekday",
        "result": "2024-02-29 is a Thursday",
        "tokens": solved["tokens"],
        "adapter": None,
    }


@pytest.mark.parametrize(
    "said",
    [
        "It was a Thursday.",
        "[]",
        '{"tool":"weekday"}',
        call("python", code="1"),
        call("weekday", date="29 February"),
        call("weekday", date="2023-02-29"),
        call("calculator", expression="1/0"),
    ],
)
def test_what_is_no_call_that_can_be_made_comes_to_nothing(
    run: Callable[..., Any], said: str
) -> None:
    solved = run("tool-agent", "Which day is it?", script=lambda _: said)
    assert solved["result"] is None


def test_a_tool_that_is_not_there_is_an_error(boot_agents: Boot) -> None:
    async def main() -> Any:
        async with boot_agents(lambda _: "") as kernel:
            return await kernel.os.result(await kernel.os.spawn("tool-agent", "What is 1 + 1?"))

    with pytest.raises(SyscallError, match="convert, days_between"):
        asyncio.run(main())


def right(text: str) -> str:
    """The right call for a weekday, and otherwise none."""
    found = [task for task in tasks("train", 16, seed=1) if task.text in text]
    if found and found[0].tool == "weekday":
        return call("weekday", date=found[0].result.split()[0])
    return "I do not know."


def test_an_attempt_is_right_when_its_call_has_the_tasks_result(run: Callable[..., Any]) -> None:
    done = run("tool-practice", script=right, split="train", count=16, seed=1)
    assert {one["kind"] for one in done["episodes"] if one["reward"]} == {"weekday"}
    assert len(done["episodes"]) == 16
    assert sum(one["reward"] for one in done["episodes"]) == 2


def test_what_is_learned_has_the_task_alone_before_the_call(run: Callable[..., Any]) -> None:
    worked = [{"task": "Which day is 2000-01-01?", "said": call("weekday", date="2000-01-01")}]
    done = run(*("tool-practice",), script=right, split="train", count=16, seed=1, worked=worked)
    episode = next(one for one in done["episodes"] if one["reward"])
    assert [message["role"] for message in episode["messages"]] == ["system", "user", "assistant"]
    assert episode["messages"][1]["content"] == episode["task"]
    assert episode["messages"][2]["content"] == episode["said"]
    assert all(name in episode["messages"][0]["content"] for name in TOOL_NAMES)


def test_attempts_of_a_namespace_that_consents_become_rows_by_their_outcome(
    boot_agents: Boot,
) -> None:
    async def main() -> tuple[Any, str]:
        async with boot_agents(right) as kernel:
            for tool in TOOLS:
                kernel.tools.add(tool)
            await kernel.os.trace_consent("practice-1")
            pid = await kernel.os.spawn(
                *("tool-practice",), split="train", count=16, seed=1, client="practice-1"
            )
            await kernel.os.wait(pid)
            rows = await kernel.os.trace_data(["practice-1"], min_reward=1.0)
            return rows, await kernel.os.read_text(rows.path)

    rows, text = asyncio.run(main())
    assert rows.rows == 2
    kept = [json.loads(line)["messages"] for line in text.splitlines()]
    assert all("weekday" in messages[-1]["content"] for messages in kept)


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path", "minilm_path")
def test_the_real_model_is_right_now_and_then_when_it_is_held_to_calls(tmp_path: Path) -> None:
    async def main() -> list[Any]:
        model = {"driver": "llama_cpp", "source": "smollm2", "context_tokens": 768, "sequences": 16}
        async with llmos.boot(home=tmp_path, models={"smollm2": model}) as kernel:
            for tool in TOOLS:
                kernel.tools.add(tool)
            sides = ({"attempts": 1}, {"attempts": 4, "temperature": 0.8})
            return [
                await kernel.os.result(
                    await kernel.os.spawn("tool-practice", split="train", count=16, **side)
                )
                for side in sides
            ]

    free, held = asyncio.run(main())
    assert sum(one["reward"] for one in free["episodes"]) <= 1
    assert sum(one["reward"] for one in held["episodes"]) >= 2
