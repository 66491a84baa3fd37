"""Tools as text, for models whose chat template does not know them.

Owns the form that a small model is shown and asked to write, SmolLM2's own:
`<tool_call>[{"name": "NAME", "arguments": {...}}]</tool_call>` on one line, and the way back from a
model's text to requests. The way back also reads forms that other models were trained on: one
object instead of a list, several blocks, bare JSON, `parameters` for `arguments`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from llmos.syscalls.content import Message, ToolRequest
from llmos.syscalls.results import ToolSpec
from llmos.syscalls.values import JsonObject

TOOL_RESPONSE = "<tool_response>\n{text}\n</tool_response>"

# A model may reach its end before it closes the block.
_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)
# Some templates ask for ids of exactly nine letters and digits.
_ID_CHARS = 9


def describe_tools(tools: Sequence[ToolSpec]) -> str:
    """A system message's part that offers tools: one line each, and how to call one."""
    lines = "\n".join(_describe(tool) for tool in tools)
    return (
        f"You can call these tools:\n{lines}\n"
        "To call one, answer with this line only:\n"
        '<tool_call>[{"name": "TOOL", "arguments": {"ARGUMENT": VALUE}}]</tool_call>\n'
        "You then get its result in <tool_response>."
    )


def write_tool_requests(message: Message) -> str:
    """A message's tool requests as the model wrote them; empty when there are none."""
    if not message.tool_requests:
        return ""
    calls = [
        {"name": request.name, "arguments": request.arguments} for request in message.tool_requests
    ]
    return f"<tool_call>{json.dumps(calls, ensure_ascii=False)}</tool_call>"


def write_answer(message: Message) -> str:
    """A message as the model wrote it: its text, then its tool requests."""
    return "\n".join(part for part in (message.text, write_tool_requests(message)) if part)


def parse_tool_requests(text: str, *, salt: str = "") -> tuple[str, tuple[ToolRequest, ...]]:
    """Split a model's answer into its text and its tool requests, in order.

    What looks like a request but cannot be read stays in the text, for the model to be told. Ids
    depend on `salt` and the requests alone: give each answer of a conversation its own salt.
    """
    calls: list[tuple[str, JsonObject]] = []

    def take(match: re.Match[str]) -> str:
        found = _calls(match[1])
        calls.extend(found)
        return "" if found else match[0]

    rest = _BLOCK.sub(take, text)
    if not calls and "<tool_call>" not in text:
        calls = _calls(text)
        rest = "" if calls else text
    requests = tuple(
        ToolRequest(id=_request_id(salt, index, name, arguments), name=name, arguments=arguments)
        for index, (name, arguments) in enumerate(calls)
    )
    return (rest.strip() if requests else text), requests


def _calls(text: str) -> list[tuple[str, JsonObject]]:
    """The calls in a piece of JSON; none unless every entry is one."""
    fenced = _FENCE.match(text.strip())
    try:
        data = json.loads(fenced[1] if fenced else text.strip())
    except ValueError:
        return []
    entries: list[Any] = data if isinstance(data, list) else [data]
    calls = [_call(entry) for entry in entries]
    return [call for call in calls if call] if all(calls) else []


def _call(entry: Any) -> tuple[str, JsonObject] | None:
    if not isinstance(entry, dict):
        return None
    inner: Any = entry.get("function")
    if isinstance(inner, dict):
        entry = inner
    name: Any = entry.get("name")
    arguments: Any = entry.get("arguments", entry.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    if isinstance(name, str) and name and isinstance(arguments, dict):
        return name, arguments
    return None


def _request_id(salt: str, index: int, name: str, arguments: JsonObject) -> str:
    content = json.dumps([salt, index, name, arguments], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:_ID_CHARS]


def _describe(tool: ToolSpec) -> str:
    """`- name(argument: type, argument?: type): purpose`, with the purpose's first line."""
    properties: dict[str, Any] = tool.parameters.get("properties", {})
    required: Sequence[str] = tool.parameters.get("required", ())
    arguments = ", ".join(
        f"{name}{'' if name in required else '?'}: {_type_name(schema)}"
        for name, schema in properties.items()
    )
    purpose = tool.description.strip().splitlines()[:1]
    return f"- {tool.name}({arguments}): {''.join(purpose)}"


def _type_name(schema: Any) -> str:
    """A JSON Schema as a short word or a choice of them."""
    if not isinstance(schema, dict):
        return "any"
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(_type_name(option) for option in schema["anyOf"])
    kind: Any = schema.get("type", "object" if "$ref" in schema else "any")
    if kind == "array":
        return f"list of {_type_name(schema.get('items', {}))}"
    return str(kind)


def openai_tool_calls(requests: Sequence[ToolRequest]) -> list[JsonObject]:
    """Requests as the `tool_calls` of a message in OpenAI's form, arguments as JSON text."""
    return [
        {
            "id": request.id,
            "type": "function",
            "function": {
                "name": request.name,
                "arguments": json.dumps(request.arguments, ensure_ascii=False),
            },
        }
        for request in requests
    ]
