"""Conversations as OpenAI's requests, and streamed answers back: pure, without a connection.

Only text goes over this wire.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llmos.drivers.chat_model import ChatEnd, ChatRequest, UnsupportedError
from llmos.drivers.contract import DeviceError
from llmos.drivers.remote_dialect import Dialect
from llmos.drivers.tool_text import openai_tool_calls, write_tool_requests
from llmos.syscalls.content import Message, ToolRequest
from llmos.syscalls.results import ToolSpec
from llmos.syscalls.values import JsonObject


def body_of(request: ChatRequest, dialect: Dialect, *, model: str) -> JsonObject:
    """The body of a streamed request. Raises: UnsupportedError."""
    if request.sampling.logprobs is not None:
        raise UnsupportedError("a remote server's tokens are not known here", field="logprobs")
    if request.stop_tokens:
        raise UnsupportedError("a remote server's tokens are not known here", field="stop_tokens")
    body: JsonObject = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": request.max_tokens,
        **dialect.sampled(request.sampling),
    }
    if request.stop:
        body["stop"] = list(request.stop)
    if request.constraint is not None:
        body.update(dialect.constrained(request.constraint))
    if dialect.session is not None and request.session:
        body[dialect.session] = request.session
    conversation = request.conversation
    if conversation.prompt is not None:
        return {**body, "prompt": conversation.prompt}
    body["messages"] = [_message(message) for message in conversation.messages]
    if conversation.prefix:
        body.update(dialect.prefixed())
        body["messages"].append({"role": "assistant", "content": conversation.prefix})
    if conversation.tools:
        body["tools"] = [_tool(spec) for spec in conversation.tools]
    return body


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list[str])


class AnswerReader:
    """The chunks of one streamed answer: text as it comes, and at last how it ended."""

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}
        self._finish: Literal["stop", "length"] | None = None
        self._usage: dict[str, Any] = {}
        self.is_done = False

    def take(self, data: str) -> str:
        """The text that an event adds. Raises: DeviceError for an error or what is no chunk."""
        if data.strip() == "[DONE]":
            self.is_done = True
            return ""
        try:
            chunk = json.loads(data)
            if not isinstance(chunk, dict):
                raise ValueError("not an object")
            if "error" in chunk:
                raise DeviceError(f"the server broke off: {error_text(chunk)}")
            return self._chunk(chunk)
        except (ValueError, TypeError, AttributeError) as problem:
            raise DeviceError(f"the server sent what is no answer: {problem}") from problem

    def end(self) -> tuple[str, ChatEnd]:
        """What is left of the text, and how the answer ended.

        Raises: DeviceError when the stream broke off before its end.
        """
        if self._finish is None:
            raise DeviceError("the server's answer broke off before its end")
        rest: list[str] = []
        requests: list[ToolRequest] = []
        for _, call in sorted(self._calls.items()):
            try:
                arguments = json.loads("".join(call.arguments) or "{}")
                requests.append(ToolRequest(id=call.id, name=call.name, arguments=arguments))
            except ValueError:  # pydantic's error is one: the model is shown what it wrote
                rest.append(f"<tool_call>{call.name} {''.join(call.arguments)}</tool_call>")
        details = self._usage.get("prompt_tokens_details") or {}
        end = ChatEnd(
            finish="tool_requests" if requests else self._finish,
            requests=tuple(requests),
            prompt_tokens=self._usage.get("prompt_tokens"),
            cached_tokens=details.get("cached_tokens"),
            completion_tokens=self._usage.get("completion_tokens"),
        )
        return "\n".join(rest), end

    def _chunk(self, chunk: dict[str, Any]) -> str:
        self._usage = chunk.get("usage") or self._usage
        text = ""
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            text += choice.get("text") or delta.get("content") or ""
            for piece in delta.get("tool_calls") or ():
                self._call(piece)
            if reason := choice.get("finish_reason"):
                self._finish = "length" if reason == "length" else "stop"
        return text

    def _call(self, piece: dict[str, Any]) -> None:
        call = self._calls.setdefault(int(piece.get("index", len(self._calls))), _Call())
        function = piece.get("function") or {}
        call.id = piece.get("id") or call.id
        call.name = function.get("name") or call.name
        call.arguments.append(function.get("arguments") or "")


def error_text(answer: Any) -> str:
    """What a server's error says, cut to a line."""
    error: Any = answer.get("error", answer) if isinstance(answer, dict) else answer
    message: Any = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(message).split())[:300]


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation as one text, for counting."""
    return "\n".join(
        f"{message.role}: {message.text}{write_tool_requests(message)}" for message in messages
    )


def _message(message: Message) -> JsonObject:
    wire: JsonObject = {"role": message.role, "content": message.text}
    if message.tool_requests:
        wire["content"] = message.text or None
        wire["tool_calls"] = openai_tool_calls(message.tool_requests)
    if message.role == "tool":
        wire["tool_call_id"] = message.tool_request_id or ""
    return wire


def _tool(spec: ToolSpec) -> JsonObject:
    return {
        "type": "function",
        "function": {
            "name": spec.name,
            "description": spec.description,
            "parameters": spec.parameters,
        },
    }
