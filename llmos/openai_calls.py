"""From OpenAI requests to syscalls: messages, sampling, constraints and the client's own tools.

Tools that a client describes are not the kernel's: their descriptions are shown to the model, and
what it asks for goes back to the client. A forced call (tool_choice "required" or a name) is
constrained to the JSON of a call, so that even a small model cannot miss it.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import NamedTuple, assert_never

from llmos.openai_api import (
    AllowedTools,
    AudioContent,
    ChatRequest,
    CompletionRequest,
    Content,
    FileContent,
    GenerateRequest,
    ImageContent,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedTool,
    RefusalContent,
    TextContent,
    TextFormat,
    ToolCallItem,
    ToolItem,
    WireMessage,
)
from llmos.syscalls.calls import Generate
from llmos.syscalls.content import AudioPart, ImagePart, Message, Part, TextPart, ToolRequest
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import Constraint, JsonSchemaConstraint, Sampling
from llmos.syscalls.results import ToolSpec
from llmos.syscalls.values import JsonObject, JsonValue

_SEEDS = 2**63
_UNBOUNDED_TOKENS = 10**9  # the model's window is the bound
_ANSWER = "the.answer"  # no tool is called so: names hold no dots


class Target(NamedTuple):
    """What a request's `model` names: a model, or an adapter on one."""

    name: str
    model: str
    adapter: str | None = None


class Tools(NamedTuple):
    """The tools offered to the model, and whether it must call one."""

    specs: tuple[ToolSpec, ...]
    is_forced: bool


# --- whole requests -------------------------------------------------------------------------------


def chat_calls(request: ChatRequest, target: Target) -> list[Generate]:
    """One `Generate` for each of the request's `n` choices.

    Without a limit of the client's, an answer may fill the model's window.
    """
    if request.top_logprobs is not None and not request.logprobs:
        raise _refused("top_logprobs", "it needs logprobs: true")
    tools = _offered(request)
    limit = request.max_completion_tokens or request.max_tokens or _UNBOUNDED_TOKENS
    return [
        Generate(
            messages=messages(request.messages),
            model=target.model,
            adapter=target.adapter,
            sampling=_sampling(
                request, choice, (request.top_logprobs or 0) if request.logprobs else None
            ),
            max_tokens=limit,
            stop=_stop(request),
            constraint=_constraint(request, tools),
            tool_specs=tools.specs,
            deadline_s=request.deadline_s,
        )
        for choice in range(request.n)
    ]


def completion_calls(request: CompletionRequest, target: Target) -> list[Generate]:
    """One `Generate` for each choice of each prompt, prompt by prompt."""
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    if not prompts:
        raise _refused("prompt", "give at least one")
    return [
        Generate(
            prompt=prompt,
            model=target.model,
            adapter=target.adapter,
            sampling=_sampling(request, choice, request.logprobs),
            max_tokens=request.max_tokens,
            stop=_stop(request),
            deadline_s=request.deadline_s,
        )
        for prompt in prompts
        for choice in range(request.n)
    ]


# --- sampling and constraints ---------------------------------------------------------------------


def _sampling(request: GenerateRequest, choice: int, logprobs: int | None) -> Sampling:
    """Choices of one request draw from different random streams, also under one seed."""
    return Sampling(
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        seed=None if request.seed is None else (request.seed + choice) % _SEEDS,
        logit_bias=_logit_bias(request.logit_bias),
        logprobs=logprobs,
    )


def _logit_bias(biases: dict[str, float]) -> dict[int, float]:
    for token in biases:
        if not token.isascii() or not token.isdigit():
            raise _refused(f"logit_bias.{token}", "a token id is a whole number")
    return {int(token): bias for token, bias in biases.items()}


def _stop(request: GenerateRequest) -> tuple[str, ...]:
    return (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)


def _constraint(request: ChatRequest, tools: Tools) -> Constraint | None:
    answer = _answer_schema(request)
    if tools.is_forced:
        return JsonSchemaConstraint(json_schema=call_schema(tools.specs))
    if answer is None:
        return None
    return JsonSchemaConstraint(
        json_schema=call_schema(tools.specs, or_answer=answer) if tools.specs else answer
    )


def _answer_schema(request: ChatRequest) -> JsonObject | None:
    match request.response_format:
        case TextFormat():
            return None
        case JsonObjectFormat():
            return {"type": "object"}
        case JsonSchemaFormat(json_schema=spec):
            return spec.json_schema or {"type": "object"}
        case _:
            assert_never(request.response_format)


# --- tools ----------------------------------------------------------------------------------------


def _offered(request: ChatRequest) -> Tools:
    """The tools that a request's `tool_choice` leaves to the model."""
    specs = tuple(_spec(item) for item in request.tools)
    match request.tool_choice:
        case None | "auto":
            return Tools(specs, is_forced=False)
        case "none":
            return Tools((), is_forced=False)
        case "required":
            if not specs:
                raise _refused("tool_choice", "a call is required and there are no tools")
            return Tools(specs, is_forced=True)
        case NamedTool(function=function):
            return Tools(_named(specs, [function.name]), is_forced=True)
        case AllowedTools(allowed_tools=allowed):
            names = [tool.function.name for tool in allowed.tools]
            return Tools(_named(specs, names), is_forced=allowed.mode == "required")
        case _:
            assert_never(request.tool_choice)


def call_schema(specs: tuple[ToolSpec, ...], *, or_answer: JsonObject | None = None) -> JsonObject:
    """The JSON Schema of one call: an object with the `name` of a tool and its `arguments`.

    With `or_answer`, JSON of that schema is as good: the model chooses.
    """
    schemas = {spec.name: spec.parameters for spec in specs}
    choices: list[JsonObject] = [
        {
            "type": "object",
            "properties": {
                "name": {"const": spec.name},
                "arguments": {"$ref": f"#/$defs/{spec.name}"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for spec in specs
    ]
    if or_answer is not None:
        schemas[_ANSWER] = or_answer
        choices.append({"$ref": f"#/$defs/{_ANSWER}"})
    moved = {name: _moved(schema, f"#/$defs/{name}") for name, schema in schemas.items()}
    return {"$defs": moved, "anyOf": choices}


def _moved(schema: JsonValue, root: str) -> JsonValue:
    """A schema whose references within itself hold at its new place `root` of a larger one."""
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved: JsonObject = {}
    for key, value in schema.items():
        is_reference = key == "$ref" and isinstance(value, str) and value.startswith("#")
        moved[str(key)] = root + value[1:] if is_reference else _moved(value, root)
    return moved


def _spec(item: ToolItem) -> ToolSpec:
    function = item.function
    return ToolSpec(
        name=function.name,
        description=function.description or "",
        parameters=function.parameters or {"type": "object", "properties": {}},
    )


def _named(specs: tuple[ToolSpec, ...], names: list[str]) -> tuple[ToolSpec, ...]:
    by_name = {spec.name: spec for spec in specs}
    for name in names:
        if name not in by_name:
            known = ", ".join(by_name) or "none"
            raise _refused("tool_choice", f"there is no tool {name!r} in tools; given: {known}")
    return tuple(by_name[name] for name in names)


# --- messages -------------------------------------------------------------------------------------


def messages(wire: list[WireMessage]) -> tuple[Message, ...]:
    """A conversation in the ABI's form. Raises: SyscallError naming the message that is wrong."""
    names: dict[str, str] = {}  # tool by the id of the call
    converted: list[Message] = []
    for index, message in enumerate(wire):
        where = f"messages.{index}"
        requests = _requests(message.tool_calls or [], f"{where}.tool_calls")
        names.update({request.id: request.name for request in requests})
        _check_role(message, where, names)
        answered = message.tool_call_id or ""
        converted.append(
            Message(
                role="system" if message.role == "developer" else message.role,
                parts=_parts(message, f"{where}.content"),
                tool_requests=requests,
                tool_request_id=message.tool_call_id,
                name=names.get(answered) or message.name,
            )
        )
    return tuple(converted)


def _check_role(message: WireMessage, where: str, names: dict[str, str]) -> None:
    if message.tool_calls and message.role != "assistant":
        raise _refused(f"{where}.tool_calls", "only an assistant message holds tool calls")
    if message.content is None and message.role != "assistant":
        raise _refused(f"{where}.content", f"a {message.role} message needs content")
    if message.role != "tool" and message.tool_call_id is not None:
        raise _refused(f"{where}.tool_call_id", "only a tool message answers a call")
    if message.role == "tool" and message.tool_call_id not in names:
        raise _refused(f"{where}.tool_call_id", "no earlier assistant message made this call")


def _parts(message: WireMessage, where: str) -> tuple[Part, ...]:
    if isinstance(message.content, list):
        return tuple(
            _part(content, f"{where}.{index}") for index, content in enumerate(message.content)
        )
    text = message.content or message.refusal
    return (TextPart(text=text),) if text else ()


def _part(content: Content, where: str) -> Part:
    match content:
        case TextContent(text=text) | RefusalContent(refusal=text):
            return TextPart(text=text)
        case ImageContent(image_url=image):
            head, comma, data = image.url.partition(";base64,")
            if not head.startswith("data:") or not comma:
                raise SyscallError(
                    "not_available",
                    f"{where}: images are not fetched; send it as data:image/...;base64,...",
                    field=where,
                )
            return ImagePart(data=_bytes(data, where), media_type=head.removeprefix("data:"))
        case AudioContent(input_audio=audio):
            return AudioPart(data=_bytes(audio.data, where), media_type=f"audio/{audio.format}")
        case FileContent():
            raise SyscallError(
                "not_available", f"{where}: file parts are not served; send the text", field=where
            )
        case _:
            assert_never(content)


def _bytes(data: str, where: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as problem:
        raise _refused(where, f"this is not base64: {problem}") from problem


def _requests(calls: list[ToolCallItem], where: str) -> tuple[ToolRequest, ...]:
    return tuple(
        ToolRequest(
            id=call.id,
            name=call.function.name,
            arguments=_arguments(call.function.arguments, f"{where}.{index}.function.arguments"),
        )
        for index, call in enumerate(calls)
    )


def _arguments(text: str, where: str) -> JsonObject:
    try:
        arguments: JsonValue = json.loads(text or "{}")
    except (ValueError, RecursionError) as problem:
        raise _refused(where, f"this is not JSON: {problem}") from problem
    if not isinstance(arguments, dict):
        raise _refused(where, "arguments are one JSON object")
    return arguments


def _refused(field: str, why: str) -> SyscallError:
    return SyscallError("invalid", f"{field}: {why}", field=field)
