"""Solve a task with tools: choose a tool, read its result, until the answer is known.

The model writes one JSON action a step, `{"tool": NAME, "arguments": {...}}`, under constraint: the
name is one of the tools offered, the arguments fit that tool's own schema. What a constraint cannot
hold off (a file that is not there, a division by zero, JSON cut by its length) goes back to the
model as an error that it can act on. An answer is offered once there is a result to answer from, or
when no tool is left to try.

Source: Yao et al., "ReAct: Synergizing Reasoning and Acting in Language Models", 2023.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from pydantic import ValidationError

from llmos.agents.forms import json_sentence
from llmos.agents.handle import OS
from llmos.agents.prompts import Example, examples, prompt
from llmos.agents.shots import nearest_examples
from llmos.agents.text import read_lossy
from llmos.syscalls.content import Message, assistant, user
from llmos.syscalls.errors import ErrorCode, SyscallError, invalid
from llmos.syscalls.options import ChoiceConstraint, JsonSchemaConstraint
from llmos.syscalls.results import ToolSpec
from llmos.syscalls.values import JsonObject

ANSWER = "answer"

_ANSWER_SPEC = ToolSpec(
    name=ANSWER,
    description="Tell the user the answer.",
    parameters={
        "type": "object",
        "properties": {"text": {"type": "string", "pattern": json_sentence(least=0, most=120)}},
        "required": ["text"],
        "additionalProperties": False,
    },
)
_EXAMPLES_SHOWN = 3
_RESULT_CHARS = 600  # of a result that the model is shown
_REPORT_CHARS = 160  # of a result on standard output
_NAME_TOKENS, _ARGUMENT_TOKENS = 24, 128

# What the model can do something about; anything else ends the program.
_FOR_THE_MODEL: frozenset[ErrorCode] = frozenset(
    {"tool_invalid", "tool_failed", "timeout", "not_found", "denied", "invalid", "storage", "busy"}
)


@dataclass(frozen=True, slots=True)
class Step:
    """One action and what came of it, as the model was shown it.

    `is_repeat` when the same call was made before: it is not made again, its result is shown again.
    """

    tool: str
    arguments: JsonObject
    result: str
    is_error: bool
    is_repeat: bool = False

    def value(self) -> JsonObject:
        return {
            "tool": self.tool,
            "arguments": self.arguments,
            "result": self.result,
            "is_error": self.is_error,
            "is_repeat": self.is_repeat,
        }


@dataclass(slots=True)
class _Run:
    """A task under way: what the model is shown, and what was done."""

    os: OS
    model: str | None
    specs: dict[str, ToolSpec]
    messages: list[Message]
    steps: list[Step] = field(default_factory=list[Step])

    async def choose(self, offered: Sequence[str]) -> str:
        """The tool that the model names."""
        if len(offered) == 1:
            return offered[0]
        opening = '{"tool":"'
        generated = await self.os.generate(
            self.messages,
            model=self.model,
            prefix=opening,
            constraint=ChoiceConstraint(choices=tuple(f'{name}"' for name in offered)),
            max_tokens=_NAME_TOKENS,
        )
        return generated.text.removeprefix(opening).rstrip('"')

    async def write_arguments(self, tool: str) -> JsonObject:
        """The arguments that the model writes. Raises: SyscallError("tool_invalid")."""
        opening = f'{{"tool":"{tool}","arguments":'
        generated = await self.os.generate(
            self.messages,
            model=self.model,
            prefix=opening,
            constraint=JsonSchemaConstraint(json_schema=self.specs[tool].parameters),
            max_tokens=_ARGUMENT_TOKENS,
        )
        written = generated.text.removeprefix(opening)
        try:
            return json.loads(written)
        except ValueError as problem:
            raise SyscallError(
                "tool_invalid",
                f"the arguments of {tool} did not end within {_ARGUMENT_TOKENS} tokens; "
                f"write less (finish: {generated.finish})",
                tool=tool,
                problems=[written],
            ) from problem

    async def act(self, tool: str) -> None:
        """Let the model call a tool, and show it the result or the error."""
        arguments: JsonObject = {}
        try:
            arguments = await self.write_arguments(tool)
            for step in self.steps:
                if (step.tool, step.arguments) == (tool, arguments):
                    self._record(replace(step, is_repeat=True))
                    return
            output = await self.os.tool_call(tool, arguments)
        except SyscallError as problem:
            if problem.code not in _FOR_THE_MODEL:
                raise
            self._record(Step(tool, arguments, _shown(f"Error: {problem.message}"), is_error=True))
        else:
            self._record(Step(tool, arguments, _shown(output.text), is_error=False))

    def _record(self, step: Step) -> None:
        self.steps.append(step)
        self.messages += [
            assistant(_action(step.tool, step.arguments)),
            user(f"Result: {step.result}"),
        ]


async def react(
    os: OS,
    task: str,
    *,
    tools: Sequence[str] | None = None,
    max_steps: int = 6,
    files: Sequence[str] | Mapping[str, str] = (),
    worked: Sequence[JsonObject] = (),
    model: str | None = None,
) -> JsonObject:
    """Solve a task with tools; the last step always answers.

    `tools` None offers all that the process may use. `files` are copied to the process's home
    first, under their last names or, in a mapping, under its keys. `worked` are more examples, with
    the fields of `prompts.Example`.
    Returns `{"answer", "is_answered", "steps"}`; `is_answered` is False when the model's answer was
    cut by its length or no tool call succeeded.
    Raises: SyscallError("invalid") for `max_steps` under 2, a tool that may not be used, or an
    example without its fields.
    """
    if max_steps < 2:
        raise SyscallError("invalid", "max_steps: give at least 2", field="max_steps")
    await _copy_in(os, files)
    specs = await _offered(os, tools)
    known = [*examples(), *_checked(worked)]
    fitting = [example for example in known if example.tool in specs]
    shown = await nearest_examples(os, task, fitting, k=_EXAMPLES_SHOWN)
    run = _Run(os, model, specs, _opening(task, list(specs.values()), shown))
    run.specs[ANSWER] = _ANSWER_SPEC
    while len(run.steps) < max_steps - 1:
        tool = await run.choose(_choices(run))
        if tool == ANSWER:
            break
        await run.act(tool)
        await _report(os, run.steps[-1])
    return await _finish(run)


async def _finish(run: _Run) -> JsonObject:
    try:
        answer, is_whole = str((await run.write_arguments(ANSWER))["text"]), True
    except SyscallError as problem:
        if problem.code != "tool_invalid":
            raise
        answer, is_whole = str(problem.fields["problems"][0]), False
    await run.os.print(answer)
    return {
        "answer": answer,
        "is_answered": is_whole and any(not step.is_error for step in run.steps),
        "steps": [step.value() for step in run.steps],
    }


def _choices(run: _Run) -> list[str]:
    """What the model may do next: an answer needs a result, and no tool serves a repetition."""
    worn_out = {step.tool for step in run.steps if step.is_repeat}
    tools = [name for name in run.specs if name != ANSWER and name not in worn_out]
    has_result = any(not step.is_error for step in run.steps)
    return [*tools, ANSWER] if has_result or not tools else tools


def _checked(worked: Sequence[JsonObject]) -> list[Example]:
    try:
        return [Example.model_validate(one) for one in worked]
    except ValidationError as problem:
        fault = invalid(problem)
        raise SyscallError("invalid", f"worked: {fault.message}", field="worked") from problem


async def _offered(os: OS, tools: Sequence[str] | None) -> dict[str, ToolSpec]:
    allowed = {spec.name: spec for spec in await os.tool_list()}
    wanted = list(allowed) if tools is None else tools
    missing = [name for name in wanted if name not in allowed]
    if missing or not wanted:
        raise SyscallError(
            "invalid",
            f"tools: {', '.join(missing) or 'none given'}; this process may use "
            f"{', '.join(allowed) or 'none'}",
            field="tools",
        )
    return {name: allowed[name] for name in wanted}


async def _copy_in(os: OS, files: Sequence[str] | Mapping[str, str]) -> None:
    if not isinstance(files, Mapping):
        files = {PurePosixPath(path).name: path for path in files}
    for name, path in files.items():
        data = (await read_lossy(os, path)).data
        fd = await os.open(name, "w")
        try:
            await os.write(data, fd=fd)
        finally:
            await os.close(fd)


def _opening(task: str, specs: Sequence[ToolSpec], shown: Sequence[Example]) -> list[Message]:
    form = prompt("react")
    tools = "\n".join(_described(spec) for spec in (*specs, _ANSWER_SPEC))
    messages = form.opening(tools=tools)
    for example in shown:
        messages += [
            form.turn(task=example.task),
            assistant(_action(example.tool, example.arguments)),
            user(f"Result: {example.result}"),
            assistant(_action(ANSWER, {"text": example.answer})),
        ]
    return [*messages, form.turn(task=task)]


def _described(spec: ToolSpec) -> str:
    names = ", ".join(spec.parameters.get("properties", {}))
    return f"{spec.name}({names}): {spec.description.splitlines()[0]}"


def _action(tool: str, arguments: JsonObject) -> str:
    """An action in the compact form that constrained JSON has, so that examples look like it."""
    return _compact({"tool": tool, "arguments": arguments})


def _compact(value: JsonObject) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _shown(result: str) -> str:
    """A result as the model sees it, and how much of it that is."""
    result = result.strip()
    if len(result) <= _RESULT_CHARS:
        return result
    return f"{result[:_RESULT_CHARS]}\n[{len(result) - _RESULT_CHARS} more characters]"


async def _report(os: OS, step: Step) -> None:
    mark = "!" if step.is_error else "="
    result = " ".join(step.result.split())
    if len(result) > _REPORT_CHARS:
        result = result[:_REPORT_CHARS] + "..."
    await os.print(f"{step.tool} {_compact(step.arguments)} {mark} {result}")
