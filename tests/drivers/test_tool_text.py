"""Tools as text, and a model's text as tool requests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.tool_text import describe_tools, parse_tool_requests, write_tool_requests
from llmos.syscalls.content import Message, ToolRequest
from llmos.syscalls.results import ToolSpec

CALL = '{"name": "add", "arguments": {"a": 1}}'
ADD = ("add", {"a": 1})


def read(text: str) -> tuple[str, list[tuple[str, Any]]]:
    rest, requests = parse_tool_requests(text)
    return rest, [(request.name, request.arguments) for request in requests]


@pytest.mark.parametrize(
    ("text", "rest", "calls"),
    [
        (f"<tool_call>[{CALL}]</tool_call>", "", [ADD]),
        (f"<tool_call>{CALL}</tool_call>", "", [ADD]),
        (f"<tool_call>\n[{CALL},\n {CALL}]\n</tool_call>", "", [ADD, ADD]),
        (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "", [ADD, ADD]),
        (f"Let me see. <tool_call>{CALL}</tool_call> ", "Let me see.", [ADD]),
        (f"<tool_call>[{CALL}]", "", [ADD]),
        (CALL, "", [ADD]),
        (f" [{CALL}] \n", "", [ADD]),
        (f"```json\n{CALL}\n```", "", [ADD]),
        ('{"name": "add", "parameters": {"a": 1}}', "", [ADD]),
        ('{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}', "", [ADD]),
        ('{"name": "add", "arguments": "{\\"a\\": 1}"}', "", [ADD]),
    ],
)
def test_requests_are_read_in_the_forms_that_models_write(
    text: str, rest: str, calls: list[Any]
) -> None:
    assert read(text) == (rest, calls)


@pytest.mark.parametrize(
    "text",
    [
        "Plain text.",
        "",
        '{"name": "Bob", "age": 3}',
        "[]",
        "[1, 2]",
        '{"name": "", "arguments": {}}',
        '{"name": "add", "arguments": [1]}',
        '{"name": "add", "arguments": "not json"}',
        "<tool_call>[oops]</tool_call>",
        f"<tool_call>[{CALL}, 3]</tool_call>",
        "  spaces stay  ",
    ],
)
def test_what_is_no_request_stays_text(text: str) -> None:
    assert read(text) == (text, [])


def test_an_unreadable_block_stays_beside_a_readable_one() -> None:
    bad = "<tool_call>{oops}</tool_call>"
    assert read(f"{bad}<tool_call>{CALL}</tool_call>") == (bad, [ADD])


NAMES = st.text("abcxyz_", min_size=1, max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(st.lists(st.tuples(NAMES, st.dictionaries(NAMES, JSON, max_size=3)), min_size=1))
def test_written_requests_are_read_back(calls: list[tuple[str, dict[str, Any]]]) -> None:
    # The closing tag inside an argument is the one thing that this form cannot carry.
    if "</tool_call>" in json.dumps(calls, ensure_ascii=False):
        return
    requests = tuple(ToolRequest(id=str(i), name=n, arguments=a) for i, (n, a) in enumerate(calls))
    text = write_tool_requests(Message(role="assistant", tool_requests=requests))
    assert read(text) == ("", calls)


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    rest, requests = parse_tool_requests(text)
    assert requests or rest == text


def test_ids_differ_within_an_answer_and_by_salt() -> None:
    _, first = parse_tool_requests(f"<tool_call>[{CALL}, {CALL}]</tool_call>")
    _, again = parse_tool_requests(f"<tool_call>[{CALL}, {CALL}]</tool_call>")
    _, other = parse_tool_requests(CALL, salt="turn 2")
    assert len({request.id for request in (*first, *other)}) == 3
    assert first == again
    assert all(len(request.id) == 9 and request.id.isalnum() for request in first)


def test_a_message_without_requests_is_written_as_nothing() -> None:
    assert write_tool_requests(Message(role="assistant")) == ""


def test_tools_are_described_on_one_line_each() -> None:
    tool = ToolSpec(
        name="search",
        description="Find pages.\n\nA longer story that a small model need not read.",
        parameters={
            "type": "object",
            "properties": {
                "query": {"type": "string"},
                "count": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
                "order": {"enum": ["new", "old"]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "where": {"$ref": "#/$defs/Where"},
                "extra": {},
            },
            "required": ["query", "order"],
        },
    )
    text = describe_tools([tool, ToolSpec(name="now", description="", parameters={})])
    assert (
        '- search(query: string, count?: integer | null, order: "new" | "old", '
        "tags?: list of string, where?: object, extra?: any): Find pages.\n" in text
    )
    assert "- now(): \n" in text
    assert "longer story" not in text
    assert "<tool_call>" in text
