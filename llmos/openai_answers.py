"""From results of syscalls to OpenAI's answers: whole objects, streamed chunks, errors.

An answer with tools offered is streamed in one piece at its end: whether text is a tool call is
known only then, and a client must never see half of one as content.
"""

from __future__ import annotations

import base64
import json
import struct
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, assert_never

from llmos.syscalls.content import ToolRequest
from llmos.syscalls.errors import ErrorCode, SyscallError
from llmos.syscalls.results import (
    Embedded,
    FinishReason,
    Generated,
    ModelVersion,
    TokenLogprob,
)
from llmos.syscalls.values import JsonObject, JsonValue

Finish = Literal["stop", "length", "tool_calls"]


class Answer(Protocol):
    """How the choices of one request are written."""

    id: str

    def whole(self, choices: Sequence[Generated]) -> JsonObject:
        """The answer in one object."""
        ...

    def piece(self, index: int, text: str) -> JsonObject | None:
        """The chunk for a piece of a choice's text; None while the text is held back."""
        ...

    def ending(self, index: int, generated: Generated) -> list[JsonObject]:
        """The chunks that end a choice."""
        ...

    def usage(self, choices: Sequence[Generated]) -> JsonObject:
        """The chunk that tells the tokens of all choices."""
        ...


class Head(NamedTuple):
    """What every object of one answer repeats."""

    id: str
    created: int
    model: str


def head(prefix: str, model: str) -> Head:
    """The head of a new answer."""
    return Head(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), model)


# --- chat -----------------------------------------------------------------------------------------


class ChatAnswer:
    """chat.completion and chat.completion.chunk objects."""

    def __init__(self, head: Head, *, has_tools: bool, can_call_many: bool = True) -> None:
        self.id = head.id
        self._head = head
        self._has_tools = has_tools
        self._can_call_many = can_call_many
        self._begun: set[int] = set()

    def whole(self, choices: Sequence[Generated]) -> JsonObject:
        written = [self._choice(index, generated) for index, generated in enumerate(choices)]
        return self._object("chat.completion", written) | {
            "usage": usage(choices, per_prompt=len(choices))
        }

    def piece(self, index: int, text: str) -> JsonObject | None:
        if self._has_tools:
            return None
        return self._chunk(index, self._role(index) | {"content": text})

    def ending(self, index: int, generated: Generated) -> list[JsonObject]:
        content, requests = self._read(generated)
        delta = self._role(index)
        if self._has_tools and content is not None:
            delta["content"] = content
        if requests:
            delta["tool_calls"] = [
                {"index": place} | _tool_call(request) for place, request in enumerate(requests)
            ]
        chunks: list[JsonObject] = []
        if delta or generated.logprobs is not None:
            chunks.append(self._chunk(index, delta, logprobs=_chat_logprobs(generated.logprobs)))
        chunks.append(self._chunk(index, {}, finish=_finish(generated.finish, requests)))
        return chunks

    def usage(self, choices: Sequence[Generated]) -> JsonObject:
        return self._object("chat.completion.chunk", []) | {
            "usage": usage(choices, per_prompt=len(choices))
        }

    def _choice(self, index: int, generated: Generated) -> JsonObject:
        content, requests = self._read(generated)
        message: JsonObject = {"role": "assistant", "content": content, "refusal": None}
        if requests:
            message["tool_calls"] = [_tool_call(request) for request in requests]
        return {
            "index": index,
            "message": message,
            "finish_reason": _finish(generated.finish, requests),
            "logprobs": _chat_logprobs(generated.logprobs),
        }

    def _read(self, generated: Generated) -> tuple[str | None, tuple[ToolRequest, ...]]:
        """A choice's text and the calls in it."""
        requests = generated.message.tool_requests
        if not self._can_call_many:
            requests = requests[:1]
        return (generated.text or None) if requests else generated.text, requests

    def _role(self, index: int) -> JsonObject:
        """A choice's first chunk says who speaks."""
        if index in self._begun:
            return {}
        self._begun.add(index)
        return {"role": "assistant"}

    def _chunk(
        self,
        index: int,
        delta: JsonObject,
        *,
        finish: Finish | None = None,
        logprobs: JsonObject | None = None,
    ) -> JsonObject:
        choice: JsonObject = {
            "index": index,
            "delta": delta,
            "finish_reason": finish,
            "logprobs": logprobs,
        }
        return self._object("chat.completion.chunk", [choice])

    def _object(self, kind: str, choices: list[JsonObject]) -> JsonObject:
        return self._head._asdict() | {"object": kind, "choices": choices}


def _tool_call(request: ToolRequest) -> JsonObject:
    """A request with an id of its own: the kernel's tells equal calls of two answers not apart."""
    arguments = json.dumps(request.arguments, ensure_ascii=False)
    function = {"name": request.name, "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}


def _chat_logprobs(tokens: tuple[TokenLogprob, ...] | None) -> JsonObject | None:
    if tokens is None:
        return None
    content = [
        _chat_token(token.text, token.logprob)
        | {"top_logprobs": [_chat_token(top.text, top.logprob) for top in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _chat_token(text: str, logprob: float) -> JsonObject:
    """A token that is part of a character has no text of its own, and so no bytes to tell."""
    is_whole = "\ufffd" not in text
    return {
        "token": text,
        "logprob": logprob,
        "bytes": list(text.encode()) if is_whole else None,
    }


# --- plain completions ----------------------------------------------------------------------------


class CompletionAnswer:
    """text_completion objects; `per_prompt` choices in a row continue the same prompt."""

    def __init__(self, head: Head, *, per_prompt: int) -> None:
        self.id = head.id
        self._head = head
        self._per_prompt = per_prompt

    def whole(self, choices: Sequence[Generated]) -> JsonObject:
        written = [
            self._choice(
                index,
                generated.text,
                finish=_text_finish(generated.finish),
                logprobs=_text_logprobs(generated.logprobs),
            )
            for index, generated in enumerate(choices)
        ]
        return self._object(written) | {"usage": usage(choices, per_prompt=self._per_prompt)}

    def piece(self, index: int, text: str) -> JsonObject | None:
        return self._object([self._choice(index, text)])

    def ending(self, index: int, generated: Generated) -> list[JsonObject]:
        finish = _text_finish(generated.finish)
        logprobs = _text_logprobs(generated.logprobs)
        return [self._object([self._choice(index, "", finish=finish, logprobs=logprobs)])]

    def usage(self, choices: Sequence[Generated]) -> JsonObject:
        return self._object([]) | {"usage": usage(choices, per_prompt=self._per_prompt)}

    def _choice(
        self,
        index: int,
        text: str,
        *,
        finish: Finish | None = None,
        logprobs: JsonObject | None = None,
    ) -> JsonObject:
        return {"index": index, "text": text, "finish_reason": finish, "logprobs": logprobs}

    def _object(self, choices: list[JsonObject]) -> JsonObject:
        return self._head._asdict() | {"object": "text_completion", "choices": choices}


def _text_finish(finish: FinishReason) -> Finish:
    return _finish(finish, ())


def _text_logprobs(tokens: tuple[TokenLogprob, ...] | None) -> JsonObject | None:
    if tokens is None:
        return None
    offsets: list[int] = []
    offset = 0
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{top.text: top.logprob for top in token.top} for token in tokens],
        "text_offset": offsets,
    }


# --- what both share ------------------------------------------------------------------------------


def _finish(finish: FinishReason, requests: Sequence[ToolRequest]) -> Finish:
    """OpenAI's word for how a choice ended; a spent window or quota is a length limit, too."""
    match finish:
        case "stop" | "tool_requests":
            return "tool_calls" if requests else "stop"
        case "length" | "context_full" | "quota":
            return "length"
        case _:
            assert_never(finish)


def usage(choices: Sequence[Generated], *, per_prompt: int) -> JsonObject:
    """The tokens of all choices; a prompt that several choices continue counts once."""
    prompts = [choice.usage for choice in choices[::per_prompt]]
    prompt_tokens = sum(prompt.prompt_tokens for prompt in prompts)
    completion_tokens = sum(choice.usage.completion_tokens for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(prompt.cached_tokens for prompt in prompts)},
    }


# --- embeddings and models ------------------------------------------------------------------------


def embeddings(embedded: Embedded, encoding: Literal["float", "base64"]) -> JsonObject:
    """The answer of /v1/embeddings; base64 is of little-endian 32-bit floats."""
    return {
        "object": "list",
        "model": embedded.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": _vector(vector, encoding)}
            for index, vector in enumerate(embedded.vectors)
        ],
        "usage": {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens},
    }


def _vector(vector: tuple[float, ...], encoding: Literal["float", "base64"]) -> JsonValue:
    if encoding == "float":
        return list(vector)
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def model(version: ModelVersion) -> JsonObject:
    """An entry of /v1/models. `kind` and `base` are additions."""
    return {
        "id": version.name,
        "object": "model",
        "created": int(version.created_at),
        "owned_by": "llmos",
        "kind": version.kind,
        "base": version.base,
    }


# --- errors ---------------------------------------------------------------------------------------


class Status(NamedTuple):
    """An HTTP status, OpenAI's words for it, and when to try again."""

    http: int
    type: str
    code: str | None = None
    retry_after_s: int | None = None
    can_retry: bool = False


_STATUS: Mapping[ErrorCode, Status] = {
    "not_available": Status(400, "invalid_request_error", "not_available"),
    "invalid": Status(400, "invalid_request_error"),
    "denied": Status(403, "permission_error"),
    # Only whoever bounds this server can raise a quota, so an automatic retry is wasted.
    "quota_exceeded": Status(429, "insufficient_quota", "insufficient_quota", 60),
    "not_found": Status(404, "invalid_request_error", "not_found"),
    "unknown_model": Status(404, "invalid_request_error", "model_not_found"),
    "context_overflow": Status(400, "invalid_request_error", "context_length_exceeded"),
    "busy": Status(429, "rate_limit_error", "rate_limit_exceeded", 1, can_retry=True),
    "mailbox_full": Status(429, "rate_limit_error", "rate_limit_exceeded", 1, can_retry=True),
    "broken_pipe": Status(500, "server_error"),
    "deadlock": Status(500, "server_error"),
    "timeout": Status(504, "server_error", "timeout"),
    "tool_invalid": Status(500, "server_error"),
    "tool_failed": Status(500, "server_error"),
    "device": Status(503, "server_error", "device", 5, can_retry=True),
    "storage": Status(500, "server_error", "storage"),
    "failed": Status(500, "server_error"),
    "refused": Status(409, "invalid_request_error", "refused"),
}


def status(error: SyscallError) -> Status:
    """The HTTP side of a syscall's error."""
    return _STATUS[error.code]


def error_object(
    message: str, kind: str, *, code: str | None = None, field: str | None = None
) -> JsonObject:
    """OpenAI's form of an error."""
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


def error_answer(error: SyscallError) -> JsonObject:
    """A syscall's error in OpenAI's form; `fields` is an addition."""
    known = status(error)
    field = error.fields.get("field")
    answer = error_object(
        error.message,
        known.type,
        code=known.code or error.code,
        field=field if isinstance(field, str) else None,
    )
    answer["error"]["fields"] = error.fields
    return answer
