"""Tools under their limits."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.kernel.clock import VirtualClock
from llmos.syscalls.errors import ConfigError, SyscallError
from llmos.syscalls.rights import Capabilities, Quota
from llmos.syscalls.tool import tool


def multiply(a: int, b: int = 2) -> int:
    """Multiply two whole numbers."""
    return a * b


async def own_pid(os: OS) -> int:
    """Tell who is calling."""
    return os.pid


def explode() -> None:
    """Raise."""
    raise RuntimeError("out of order")


def babble() -> str:
    """Say far too much."""
    return "blah " * 10_000


async def hang() -> None:
    """Never come back."""
    await asyncio.Event().wait()


TOOLS = [tool(multiply), tool(own_pid), tool(explode), tool(babble), tool(hang, timeout_s=3)]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def with_tools(boot_kernel: Any, scenario: Any, **options: Any) -> Any:
    async def run() -> Any:
        async with boot_kernel(**options) as kernel:
            for each in TOOLS:
                kernel.tools.add(each)
            return await scenario(kernel)

    return asyncio.run(run())


def test_a_tool_runs_with_validated_arguments(boot_kernel: Any) -> None:
    async def scenario(kernel: Any) -> None:
        output = await kernel.os.tool_call("multiply", {"a": 21})
        assert (output.text, output.value) == ("42", 42)

    with_tools(boot_kernel, scenario)


def test_wrong_arguments_come_back_as_problems_that_a_model_can_act_on(boot_kernel: Any) -> None:
    async def scenario(kernel: Any) -> None:
        with pytest.raises(SyscallError) as refusal:
            await kernel.os.tool_call("multiply", {"a": "many", "c": 1})
        assert refusal.value.code == "tool_invalid"
        assert {line.split(":")[0] for line in refusal.value.fields["problems"]} == {"a", "c"}

    with_tools(boot_kernel, scenario)


def test_a_tool_acts_as_its_caller(boot_kernel: Any) -> None:
    async def agent(os: OS) -> list[int]:
        return [os.pid, (await os.tool_call("own_pid")).value]

    async def scenario(kernel: Any) -> None:
        mine, seen = await kernel.os.result(await kernel.os.spawn(agent))
        assert mine == seen

    with_tools(boot_kernel, scenario)


def test_a_tool_that_raises_fails_its_call_only(boot_kernel: Any) -> None:
    async def scenario(kernel: Any) -> None:
        with pytest.raises(SyscallError, match="RuntimeError: out of order") as failure:
            await kernel.os.tool_call("explode")
        assert failure.value.code == "tool_failed"
        assert (await kernel.os.tool_call("multiply", {"a": 1})).value == 2

    with_tools(boot_kernel, scenario)


def test_long_output_is_cut_and_says_so(boot_kernel: Any) -> None:
    async def scenario(kernel: Any) -> None:
        output = await kernel.os.tool_call("babble")
        assert output.is_truncated
        assert len(output.text) < 9_000
        assert "50000 characters" in output.text

    with_tools(boot_kernel, scenario)


def test_a_tool_that_hangs_is_cancelled_at_its_limit_and_its_time_is_charged(
    boot_kernel: Any,
) -> None:
    clock = VirtualClock()

    async def agent(os: OS) -> str:
        try:
            await os.tool_call("hang")
        except SyscallError as problem:
            return problem.code
        return "came back"

    async def scenario(kernel: Any) -> None:
        pid = await kernel.os.spawn(agent)
        await settle()
        assert kernel.table.get(pid).state == "waiting_tool"
        account = kernel.table.get(pid).account
        clock.advance(3)
        assert await kernel.os.result(pid) == "timeout"
        assert account.tool_s == 3

    with_tools(boot_kernel, scenario, clock=clock)


def test_a_thread_that_never_returns_costs_only_its_caller(boot_kernel: Any) -> None:
    release = threading.Event()

    def stuck() -> None:
        """Block a thread."""
        release.wait()

    async def scenario(kernel: Any) -> None:
        kernel.tools.add(tool(stuck))
        with pytest.raises(SyscallError, match="timeout"):
            await kernel.os.tool_call("stuck", timeout_s=0.01)
        assert (await kernel.os.tool_call("multiply", {"a": 1})).value == 2
        release.set()

    with_tools(boot_kernel, scenario)


def test_tool_time_is_bounded_by_quota(boot_kernel: Any) -> None:
    clock = VirtualClock()

    async def agent(os: OS) -> list[str]:
        codes: list[str] = []
        for _ in range(2):
            try:
                await os.tool_call("hang")
            except SyscallError as problem:
                codes.append(problem.code)
        return codes

    async def scenario(kernel: Any) -> None:
        pid = await kernel.os.spawn(agent, quota=Quota(tool_s=2))
        await settle()
        clock.advance(2)
        assert await kernel.os.result(pid) == ["timeout", "quota_exceeded"]

    with_tools(boot_kernel, scenario, clock=clock)


def test_tools_that_run_at_the_same_time_cannot_overdraw_a_quota(boot_kernel: Any) -> None:
    clock = VirtualClock()

    async def agent(os: OS) -> list[str]:
        calls = [os.tool_call("hang") for _ in range(3)]
        problems = await asyncio.gather(*calls, return_exceptions=True)
        return sorted(problem.code for problem in problems)

    async def scenario(kernel: Any) -> None:
        pid = await kernel.os.spawn(agent, quota=Quota(tool_s=5))
        account = kernel.table.get(pid).account
        await settle()
        clock.advance(3)
        assert await kernel.os.result(pid) == ["quota_exceeded", "timeout", "timeout"]
        assert account.tool_s == account.held["tool_s"] == 5

    with_tools(boot_kernel, scenario, clock=clock)


@pytest.mark.parametrize("is_async", [True, False])
def test_a_tool_that_bails_out_fails_its_call_and_does_not_end_the_caller(
    boot_kernel: Any, is_async: bool
) -> None:
    async def cancel() -> None:
        """Cancel."""
        raise asyncio.CancelledError

    def leave() -> None:
        """Leave."""
        sys.exit(2)

    async def agent(os: OS) -> str:
        with pytest.raises(SyscallError) as failure:
            await os.tool_call("cancel" if is_async else "leave")
        return failure.value.code

    async def scenario(kernel: Any) -> None:
        kernel.tools.add(tool(cancel))
        kernel.tools.add(tool(leave))
        assert await kernel.os.result(await kernel.os.spawn(agent)) == "tool_failed"

    with_tools(boot_kernel, scenario)


def test_only_granted_tools_are_listed_and_run(boot_kernel: Any) -> None:
    async def agent(os: OS) -> list[Any]:
        names = [spec.name for spec in await os.tool_list()]
        try:
            await os.tool_call("explode")
        except SyscallError as problem:
            return [names, problem.code]
        return [names, "ran"]

    async def scenario(kernel: Any) -> None:
        rights = Capabilities(tools=frozenset({"multiply", "own_*"}))
        pid = await kernel.os.spawn(agent, capabilities=rights)
        assert await kernel.os.result(pid) == [["multiply", "own_pid"], "denied"]

    with_tools(boot_kernel, scenario)


def test_a_tool_without_docstring_or_types_is_refused_at_once() -> None:
    def nameless(a: int) -> int:
        return a

    def untyped(a) -> int:  # type: ignore[no-untyped-def]
        """Has no types."""
        return a

    with pytest.raises(ConfigError, match="docstring"):
        tool(nameless)
    with pytest.raises(ConfigError, match="give parameter a a type"):
        tool(untyped)
