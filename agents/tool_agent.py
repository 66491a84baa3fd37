"""An agent that solves a task by one tool call: a sentence in, one call made.

In everyday use the model writes in its own words and greedily, and what it says is read as a call.
To collect attempts that are worth learning from (`tool_practice.py`) it can be held to the form of
a call, to some of the tools, and be shown what succeeded before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from llmos.agents.handle import OS
from llmos.agents.prompts import prompt
from llmos.syscalls.content import Message, assistant
from llmos.syscalls.errors import ErrorCode, SyscallError
from llmos.syscalls.options import Constraint, JsonSchemaConstraint, Sampling
from llmos.syscalls.results import ToolSpec
from llmos.syscalls.values import JsonObject

TOOL_NAMES = ("calculator", "convert", "days_between", "weekday", "stock")
_CALL_TOKENS = 64
# What comes of a call that the model got wrong; anything else ends the agent.
_WRONG: frozenset[ErrorCode] = frozenset({"tool_invalid", "tool_failed", "invalid"})


async def tool_agent(
    os: OS,
    task: str,
    *,
    tools: Sequence[str] = TOOL_NAMES,
    held_to: Sequence[str] | None = None,
    worked: Sequence[JsonObject] = (),
    temperature: float = 0.0,
    seed: int = 0,
    model: str | None = None,
    adapter: str | None = None,
) -> JsonObject:
    """Solve a task with one call of one of the `tools`.

    With `held_to` the model can write nothing but a call of one of these. `worked` are
    `{"task", "said"}` to show before the task.
    Returns `{"said", "tool", "result", "tokens", "adapter"}`; tool and result are None where what
    was said is no call that can be made.
    """
    specs = await offered(os, tools)
    generated = await os.generate(
        conversation(task, specs, worked),
        model=model,
        adapter=adapter,
        sampling=Sampling(temperature=temperature, seed=seed),
        constraint=None if held_to is None else _form(specs, held_to),
        max_tokens=_CALL_TOKENS,
    )
    said = generated.text.strip()
    name, result = await _made(os, said, tools)
    return {
        "said": said,
        "tool": name,
        "result": result,
        "tokens": generated.usage.completion_tokens,
        "adapter": generated.adapter,
    }


def conversation(
    task: str, specs: Sequence[ToolSpec], worked: Sequence[JsonObject] = ()
) -> list[Message]:
    """What the agent's model is given: the tools, what worked before, the task."""
    form = prompt("tool_agent")
    lines = [f"{spec.name}({_parameters(spec)}): {spec.description}" for spec in specs]
    messages = form.opening(tools="\n".join(lines))
    for one in worked:
        messages += [form.turn(task=one["task"]), assistant(str(one["said"]))]
    return [*messages, form.turn(task=task)]


async def offered(os: OS, names: Sequence[str]) -> list[ToolSpec]:
    """The tools by these names. Raises: SyscallError("not_available")."""
    allowed = {spec.name: spec for spec in await os.tool_list()}
    missing = [name for name in names if name not in allowed]
    if missing:
        raise SyscallError(
            "not_available",
            f"tools: {', '.join(missing)} are not there, or this process may not call them",
        )
    return [allowed[name] for name in names]


# --- internals ------------------------------------------------------------------------------------


async def _made(os: OS, said: str, tools: Sequence[str]) -> tuple[str | None, str | None]:
    """The call that a text makes, if it makes one, and its result."""
    try:
        call = json.loads(said)
        name, arguments = call["tool"], call["arguments"]
        if name not in tools:
            return None, None
        return name, (await os.tool_call(name, arguments)).text
    except (ValueError, TypeError, KeyError):
        return None, None
    except SyscallError as problem:
        if problem.code not in _WRONG:
            raise
        return None, None


def _parameters(spec: ToolSpec) -> str:
    return ", ".join(spec.parameters["properties"])


def _form(specs: Sequence[ToolSpec], names: Sequence[str]) -> Constraint:
    """One call of one of the named tools, with arguments that fit it."""
    forms = [
        {
            "type": "object",
            "properties": {"tool": {"const": spec.name}, "arguments": spec.parameters},
            "required": ["tool", "arguments"],
            "additionalProperties": False,
        }
        for spec in specs
        if spec.name in names
    ]
    return JsonSchemaConstraint(json_schema={"anyOf": forms})
