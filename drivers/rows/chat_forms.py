"""Conversations in the forms that data sets use, as the messages of the ABI.

Reads OpenAI messages (with tool calls and `tools`), the ABI's own messages, ShareGPT
(`conversations` of `from` and `value`), Alpaca (`instruction`, `input`, `output`, `history`) and
`prompt` with `completion`. Errors name the field. Refuses to know files and tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from pydantic import ValidationError

from llmos.drivers.rows.fields import object_of, text_of
from llmos.drivers.rows.problems import refused
from llmos.drivers.tool_text import openai_tool_calls
from llmos.syscalls.content import Message, assistant, system, user
from llmos.syscalls.errors import invalid
from llmos.syscalls.results import ToolSpec
from llmos.syscalls.values import JsonObject

FORMS = (
    '{"messages": [...]}, {"conversations": [...]}, {"instruction", "input", "output"} or '
    '{"prompt", "completion"}'
)
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "observation": "tool",
    "tool": "tool",
    "function_call": "assistant",
}


def messages_of(fields: JsonObject, origin: str) -> tuple[Message, ...]:
    """The conversation that a row of any known form stands for. Raises: SyscallError("invalid")."""
    names = ("messages", "conversations", "instruction", "prompt")
    forms = [name for name in names if fields.get(name) is not None]
    if len(forms) != 1:
        found = " and ".join(forms) or "none of their fields"
        raise refused(origin, "(line)", f"a row is one of {FORMS}; this one has {found}")
    match forms[0]:
        case "messages":
            return conversation(fields["messages"], origin, "messages")
        case "conversations":
            return _sharegpt(fields, origin)
        case "prompt":
            asked = prompt_of(fields["prompt"], origin)
            return *asked, assistant(text_of(fields, "completion", origin))
        case _:
            return _alpaca(fields, origin)


def prompt_of(prompt: Any, origin: str) -> tuple[Message, ...]:
    """A prompt as a question of the user's, or as the messages that it is a list of."""
    if isinstance(prompt, list):
        return conversation(cast("list[Any]", prompt), origin, "prompt")
    return (user(text_of({"prompt": prompt}, "prompt", origin)),)


def conversation(said: Any, origin: str, field: str) -> tuple[Message, ...]:
    """A list of messages in OpenAI's form or the ABI's."""
    if not isinstance(said, list) or not said:
        raise refused(origin, field, "must be a list of at least one message")
    items = cast("list[Any]", said)
    return tuple(_message(item, origin, f"{field}.{i}") for i, item in enumerate(items))


def to_openai(message: Message) -> JsonObject:
    """A message of text and tool requests in OpenAI's form; `conversation` reads it back."""
    fields: JsonObject = {"role": message.role, "content": message.text}
    if message.tool_requests:
        fields["tool_calls"] = openai_tool_calls(message.tool_requests)
    if message.tool_request_id is not None:
        fields["tool_call_id"] = message.tool_request_id
    if message.name is not None:
        fields["name"] = message.name
    return fields


def tool_to_openai(tool: ToolSpec) -> JsonObject:
    """A tool in OpenAI's form; `tools_of` reads it back."""
    return {"type": "function", "function": tool.model_dump()}


def tools_of(fields: JsonObject, origin: str) -> tuple[ToolSpec, ...]:
    """The tools that a row says were offered, as OpenAI's functions or the ABI's own."""
    tools: Any = fields.get("tools")
    if isinstance(tools, str):  # ShareGPT keeps them as text
        tools = _json(tools, origin, "tools") if tools.strip() else None
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise refused(origin, "tools", f"must be a list but is {type(tools).__name__}")
    return tuple(
        _tool(item, origin, f"tools.{i}") for i, item in enumerate(cast("list[Any]", tools))
    )


def _tool(item: Any, origin: str, field: str) -> ToolSpec:
    tool = object_of(item, origin, field)
    tool = object_of(tool["function"], origin, f"{field}.function") if "function" in tool else tool
    return ToolSpec(
        name=text_of(tool, "name", origin, f"{field}.name"),
        description=str(tool.get("description") or ""),
        parameters=object_of(tool.get("parameters") or {}, origin, f"{field}.parameters"),
    )


def _message(item: Any, origin: str, field: str) -> Message:
    fields = dict(object_of(item, origin, field))
    if "content" in fields or "tool_calls" in fields:
        fields = _from_openai(fields, origin, field)
    try:
        return Message.model_validate_json(json.dumps(fields))
    except ValidationError as problem:
        error = invalid(problem)
        inner = str(error.fields["field"])
        why = error.message.removeprefix(f"{inner}: ")
        raise refused(origin, f"{field}.{inner}", why) from problem


def _from_openai(fields: JsonObject, origin: str, field: str) -> JsonObject:
    """A message of OpenAI's with the names that the ABI has for its fields."""
    calls = fields.pop("tool_calls", None)
    fields["parts"] = _parts(fields.pop("content", None), bool(calls), origin, f"{field}.content")
    if calls:
        if not isinstance(calls, list):
            raise refused(origin, f"{field}.tool_calls", "must be a list")
        fields["tool_requests"] = [
            _request(call, origin, f"{field}.tool_calls.{i}")
            for i, call in enumerate(cast("list[Any]", calls))
        ]
    if "tool_call_id" in fields:
        fields["tool_request_id"] = fields.pop("tool_call_id")
    if fields.get("role") == "developer":
        fields["role"] = "system"
    return {name: value for name, value in fields.items() if value is not None}


def _parts(content: Any, has_calls: bool, origin: str, field: str) -> list[JsonObject]:
    """Content as parts: text, a list of parts, or nothing beside tool calls."""
    if isinstance(content, list):
        return [object_of(part, origin, field) for part in cast("list[Any]", content)]
    if has_calls and content in (None, ""):
        return []
    return [{"type": "text", "text": text_of({"content": content}, "content", origin, field)}]


def _request(item: Any, origin: str, field: str) -> JsonObject:
    call = object_of(item, origin, field)
    function = object_of(call.get("function"), origin, f"{field}.function")
    arguments: Any = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _json(arguments, origin, f"{field}.function.arguments")
    return {
        "id": str(call.get("id") or ""),
        "name": text_of(function, "name", origin, f"{field}.function.name"),
        "arguments": object_of(arguments, origin, f"{field}.function.arguments"),
    }


def _sharegpt(fields: JsonObject, origin: str) -> tuple[Message, ...]:
    turns: Any = fields["conversations"]
    if not isinstance(turns, list) or not turns:
        raise refused(origin, "conversations", "must be a list of at least one turn")
    said = [system(fields["system"])] if isinstance(fields.get("system"), str) else []
    for index, item in enumerate(cast("list[Any]", turns)):
        field = f"conversations.{index}"
        turn = object_of(item, origin, field)
        if "from" not in turn and "role" in turn:  # OpenAI messages under ShareGPT's name
            said.append(_message(turn, origin, field))
            continue
        speaker = text_of(turn, "from", origin, f"{field}.from")
        text = text_of(turn, "value", origin, f"{field}.value")
        if speaker not in _SHAREGPT_ROLES:
            known = ", ".join(_SHAREGPT_ROLES)
            raise refused(origin, f"{field}.from", f"{speaker!r} is none of {known}")
        if speaker == "function_call":
            said.append(_asked(text, origin, f"{field}.value"))
        else:
            content = {"role": _SHAREGPT_ROLES[speaker], "content": text}
            said.append(_message(content, origin, field))
    return tuple(said)


def _asked(text: str, origin: str, field: str) -> Message:
    """Tool requests from their JSON text."""
    calls: Any = _json(text, origin, field)
    listed: Sequence[Any] = cast("list[Any]", calls) if isinstance(calls, list) else [calls]
    requests = [_request({"function": call}, origin, field) for call in listed]
    return _message({"role": "assistant", "tool_requests": requests}, origin, field)


def _alpaca(fields: JsonObject, origin: str) -> tuple[Message, ...]:
    said: list[Message] = []
    if fields.get("system") not in (None, ""):
        said.append(system(text_of(fields, "system", origin)))
    history: Any = fields.get("history") or []
    if not isinstance(history, list):
        raise refused(origin, "history", "must be a list of [question, answer]")
    for index, pair in enumerate(cast("list[Any]", history)):
        match pair:
            case [str(question), str(answer)]:
                said += user(question), assistant(answer)
            case _:
                raise refused(origin, f"history.{index}", "must be [question, answer]")
    question = text_of(fields, "instruction", origin)
    if fields.get("input") not in (None, ""):
        question += "\n\n" + text_of(fields, "input", origin)
    return *said, user(question), assistant(text_of(fields, "output", origin))


def _json(text: str, origin: str, field: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as problem:
        raise refused(origin, field, f"not JSON: {problem}") from problem
