"""Request bodies: what is served, what is ignored, what is refused and by which name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmos.openai_api import ChatRequest, CompletionRequest, EmbeddingRequest, Wire, parse
from llmos.syscalls.errors import SyscallError

HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
BROKEN = {"type": "object", "properties": []}


def refusal(shape: type[Wire], body: object) -> tuple[str, object]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(SyscallError) as caught:
        parse(shape, raw)
    return caught.value.code, caught.value.fields.get("field")


def test_a_body_with_the_defaults_is_openais_defaults():
    request = parse(ChatRequest, json.dumps(HELLO).encode())
    assert (request.temperature, request.top_p, request.n, request.stream) == (1.0, 1.0, 1, False)


def test_a_field_that_is_null_counts_as_not_given():
    body = HELLO | {"temperature": None, "stop": None, "tools": None, "functions": None}
    assert parse(ChatRequest, json.dumps(body).encode()).temperature == 1.0


@pytest.mark.parametrize(
    "extra",
    [
        {"user": "somebody", "metadata": {"a": "b"}, "service_tier": "auto"},
        {"store": False, "modalities": ["text"], "verbosity": "medium"},
    ],
)
def test_fields_that_leave_the_answer_as_it_is_are_accepted(extra: dict[str, Any]):
    parse(ChatRequest, json.dumps(HELLO | extra).encode())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modalities", ["text", "audio"]),
        ("functions", [{"name": "f"}]),
        ("store", True),
        ("reasoning_effort", "high"),
        ("web_search_options", {}),
    ],
)
def test_a_field_that_would_change_the_answer_is_refused_by_name(name: str, value: Any):
    assert refusal(ChatRequest, HELLO | {name: value}) == ("not_available", name)


def test_echo_of_a_completion_is_refused_by_name():
    body = {"model": "m", "prompt": "once", "echo": True}
    assert refusal(CompletionRequest, body) == ("not_available", "echo")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"n": True}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "hologram"}]}]},
            "messages.0.content.0",
        ),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": BROKEN}}]},
            "tools.0.function.parameters",
        ),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"logit_bias": {"5": 200}}, "logit_bias.5"),
        ({"stop": 5}, "stop"),
    ],
)
def test_a_wrong_field_is_named_as_the_client_wrote_it(change: dict[str, Any], field: str):
    assert refusal(ChatRequest, HELLO | change) == ("invalid", field)


def test_a_missing_field_is_named():
    assert refusal(ChatRequest, {"model": "m"}) == ("invalid", "messages")
    assert refusal(EmbeddingRequest, {"model": "m"}) == ("invalid", "input")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b'{"temperature": NaN}',
        b"\xff",
        b"[" * 100_000,
        b'{"\\ud800": 1}',
        b'{"model": "\\ud800"}',
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes):
    assert refusal(ChatRequest, body)[0] == "invalid"


def test_a_character_in_two_escapes_is_one_character():
    body = json.dumps(HELLO | {"model": "\U0001f600"}).encode()
    assert b"\\ud83d" in body
    assert parse(ChatRequest, body).model == "\U0001f600"


def test_token_lists_are_refused_as_embedding_input():
    assert refusal(EmbeddingRequest, {"model": "m", "input": [1, 2]}) == ("invalid", "input.0")
