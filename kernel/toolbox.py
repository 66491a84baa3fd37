"""Tools: who may call which, and running one within its limits.

A synchronous tool runs on a thread of its own, so that a tool that hangs costs its caller a
timeout and nobody else anything; Python cannot end that thread, it is abandoned. Tools that must be
stopped for certain run their work in an OS process (`sandbox.py`). Event-loop thread only.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llmos.kernel.clock import Clock
from llmos.kernel.process import Process
from llmos.kernel.threads import settle
from llmos.kernel.waits import Waits
from llmos.syscalls import calls
from llmos.syscalls.errors import ConfigError, KernelPanic, SyscallError
from llmos.syscalls.results import ToolOutput, ToolSpec, ToolSpecs
from llmos.syscalls.tool import Tool
from llmos.syscalls.wire import json_value


class ToolBox:
    def __init__(self, *, bind: Callable[[Process], Any], clock: Clock, waits: Waits) -> None:
        self._bind = bind
        self._clock = clock
        self._waits = waits
        self._tools: dict[str, Tool] = {}

    def add(self, tool: Tool) -> None:
        """Offer a tool. Raises: ConfigError when the name is taken."""
        if tool.spec.name in self._tools:
            raise ConfigError(f"tool {tool.spec.name}", "the name is taken; give it another")
        self._tools[tool.spec.name] = tool

    def names(self) -> list[str]:
        return sorted(self._tools)

    def list(self, process: Process) -> ToolSpecs:
        """The tools that a process may use."""
        allowed = [n for n in self.names() if process.capabilities.allows("tools", n)]
        return ToolSpecs(tools=tuple(self._tools[name].spec for name in allowed))

    def specs(self, process: Process, names: Iterable[str]) -> Sequence[ToolSpec]:
        """The specs of tools by name. Raises: SyscallError("not_found")."""
        return [self._get(name).spec for name in names]

    async def call(self, process: Process, call: calls.ToolCall) -> ToolOutput:
        """Run a tool; its time is charged whether it ends well or not.

        Raises: SyscallError("tool_invalid"), ("tool_failed"), ("timeout") or ("quota_exceeded").
        """
        tool = self._get(call.name)
        arguments = tool.validate(call.arguments)
        account = process.account
        limit_s = float(min(tool.timeout_s, call.timeout_s or tool.timeout_s))
        limit_s = account.reserve_up_to("tool_s", limit_s)
        started = self._clock.now()
        try:
            future = self._start(process, tool, arguments)
            value = await self._waits.block(
                process, future, state="waiting_tool", on=call.name, timeout_s=limit_s
            )
        except (SyscallError, KernelPanic):
            raise
        except Exception as problem:
            raise SyscallError(
                "tool_failed",
                f"{call.name} raised {type(problem).__name__}: {problem}",
                tool=call.name,
                error=type(problem).__name__,
            ) from problem
        finally:
            spent = min(self._clock.now() - started, limit_s)
            account.refund("tool_s", limit_s - spent)
            account.tool_s += spent
        return _output(tool, value, self._clock.now() - started)

    def _get(self, name: str) -> Tool:
        tool = self._tools.get(name)
        if tool is None:
            raise SyscallError(
                "not_found",
                f"there is no tool {name!r}; known are {', '.join(self.names()) or 'none'}",
                what="tool",
                name=name,
            )
        return tool

    def _start(
        self, process: Process, tool: Tool, arguments: dict[str, Any]
    ) -> asyncio.Future[Any]:
        handle = (self._bind(process),) if tool.wants_handle else ()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if inspect.iscoroutinefunction(tool.function):
            task = loop.create_task(tool.function(*handle, **arguments), name=tool.spec.name)
            task.add_done_callback(lambda task: _pass_on(task, future))
            future.add_done_callback(lambda _: task.cancel())
            return future

        def work() -> None:
            try:
                result, problem = tool.function(*handle, **arguments), None
            except Exception as raised:  # noqa: BLE001 - passed on to the caller
                result, problem = None, raised
            except SystemExit as leaving:  # raised on the event loop, it would end the kernel
                result, problem = None, RuntimeError(f"it called sys.exit({leaving.code})")
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, future, result, problem)

        threading.Thread(target=work, name=f"tool-{tool.spec.name}", daemon=True).start()
        return future


def _pass_on(task: asyncio.Task[Any], future: asyncio.Future[Any]) -> None:
    problem = None if task.cancelled() else task.exception()
    if future.done():
        return
    if task.cancelled():
        # Not by us: to its caller it must not look as if the caller had been cancelled.
        future.set_exception(RuntimeError("it cancelled itself"))
    elif problem is not None:
        future.set_exception(problem)
    else:
        future.set_result(task.result())


def _output(tool: Tool, value: Any, seconds: float) -> ToolOutput:
    plain = json_value(value)
    text = plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
    limit = tool.max_output_chars
    if len(text) <= limit:
        return ToolOutput(text=text, value=plain, seconds=seconds)
    notice = f"\n[cut: {len(text)} characters, {limit} shown]"
    return ToolOutput(text=text[:limit] + notice, is_truncated=True, seconds=seconds)
