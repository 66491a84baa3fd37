"""Requests as syscalls: messages, limits, seeds, tools and their constraints."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmos.openai_api import ChatRequest, CompletionRequest, parse
from llmos.openai_calls import Target, call_schema, chat_calls, completion_calls
from llmos.syscalls.calls import Generate
from llmos.syscalls.content import ImagePart, TextPart
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import JsonSchemaConstraint
from llmos.syscalls.results import ToolSpec

TARGET = Target("m", "m")
HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/City"}},
            "required": ["city"],
            "$defs": {"City": {"type": "string"}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def chat(messages: Any = HELLO, **fields: Any) -> list[Generate]:
    body = {"model": "m", "messages": messages, **fields}
    return chat_calls(parse(ChatRequest, json.dumps(body).encode()), TARGET)


def refusal(messages: Any = HELLO, **fields: Any) -> tuple[str, object]:
    with pytest.raises(SyscallError) as caught:
        chat(messages, **fields)
    return caught.value.code, caught.value.fields.get("field")


def schema_of(call: Generate) -> dict[str, Any]:
    assert isinstance(call.constraint, JsonSchemaConstraint)
    return call.constraint.json_schema


# --- additions ------------------------------------------------------------------------------------


def test_a_deadline_is_a_field_of_both_kinds_of_request():
    (call,) = chat(deadline_s=2.5)
    assert call.deadline_s == 2.5
    body = b'{"model": "m", "prompt": "on", "deadline_s": 3}'
    (call,) = completion_calls(parse(CompletionRequest, body), TARGET)
    assert call.deadline_s == 3.0
    assert chat()[0].deadline_s is None


@pytest.mark.parametrize("deadline_s", [0, -1, "soon"])
def test_a_deadline_that_is_no_time_is_refused(deadline_s: Any):
    assert refusal(deadline_s=deadline_s) == ("invalid", "deadline_s")


# --- messages -------------------------------------------------------------------------------------


def test_a_conversation_with_a_tool_call_keeps_its_links():
    (call,) = chat(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "In Rome?"}]},
            {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ]
    )
    system, _, assistant, answer = call.messages
    assert system.role == "system"
    assert assistant.tool_requests[0].arguments == {"city": "Rome"}
    assert assistant.parts == ()
    assert (answer.tool_request_id, answer.name, answer.text) == ("call_1", "weather", "sunny")


def test_an_inline_image_becomes_an_image_part_for_the_kernel_to_judge():
    url = {"url": "data:image/png;base64,aGk="}
    content = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": url}]
    (call,) = chat([{"role": "user", "content": content}])
    assert call.messages[0].parts == (
        TextPart(text="what is it?"),
        ImagePart(data=b"hi", media_type="image/png"),
    )


@pytest.mark.parametrize(
    ("message", "code", "field"),
    [
        ({"role": "user"}, "invalid", "messages.0.content"),
        (
            {"role": "tool", "content": "x", "tool_call_id": "c"},
            "invalid",
            "messages.0.tool_call_id",
        ),
        ({"role": "tool", "content": "x"}, "invalid", "messages.0.tool_call_id"),
        (
            {
                "role": "assistant",
                "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{"}}],
            },
            "invalid",
            "messages.0.tool_calls.0.function.arguments",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "https://a.example/b"}}],
            },
            "not_available",
            "messages.0.content.0",
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]},
            "not_available",
            "messages.0.content.0",
        ),
    ],
)
def test_a_wrong_message_is_named(message: dict[str, Any], code: str, field: str):
    assert refusal([message]) == (code, field)


# --- sampling -------------------------------------------------------------------------------------


def test_an_answer_without_a_limit_may_fill_the_window():
    assert chat()[0].max_tokens > 1_000_000
    assert chat(max_tokens=7)[0].max_tokens == 7
    assert chat(max_tokens=7, max_completion_tokens=9)[0].max_tokens == 9


def test_choices_under_one_seed_draw_from_different_streams():
    assert [call.sampling.seed for call in chat(n=3, seed=5)] == [5, 6, 7]
    assert [call.sampling.seed for call in chat(n=2)] == [None, None]


def test_a_negative_seed_is_a_seed():
    (call,) = chat(seed=-1)
    assert call.sampling.seed == 2**63 - 1


def test_sampling_settings_arrive():
    (call,) = chat(
        temperature=0.5, top_p=0.9, presence_penalty=1, stop="END", logit_bias={"12": -100}
    )
    assert (call.sampling.temperature, call.sampling.top_p) == (0.5, 0.9)
    assert call.sampling.presence_penalty == 1.0
    assert call.sampling.logit_bias == {12: -100.0}
    assert call.stop == ("END",)


def test_a_bias_for_something_that_is_no_token_is_refused():
    assert refusal(logit_bias={"word": 1}) == ("invalid", "logit_bias.word")


def test_logprobs_ask_for_as_many_as_wanted():
    assert chat()[0].sampling.logprobs is None
    assert chat(logprobs=True)[0].sampling.logprobs == 0
    assert chat(logprobs=True, top_logprobs=4)[0].sampling.logprobs == 4
    assert refusal(top_logprobs=4) == ("invalid", "top_logprobs")


def test_an_adapters_name_means_its_model_with_the_adapter():
    request = parse(ChatRequest, json.dumps({"model": "poet", "messages": HELLO}).encode())
    (call,) = chat_calls(request, Target("poet", "m", "poet"))
    assert (call.model, call.adapter) == ("m", "poet")


def test_completions_are_plain_prompts_each_with_its_choices():
    body = {"model": "m", "prompt": ["a", "b"], "n": 2, "logprobs": 1}
    calls = completion_calls(parse(CompletionRequest, json.dumps(body).encode()), TARGET)
    assert [call.prompt for call in calls] == ["a", "a", "b", "b"]
    assert {call.max_tokens for call in calls} == {16}
    assert {call.messages for call in calls} == {()}


# --- tools and formats ----------------------------------------------------------------------------


def test_offered_tools_are_shown_and_leave_the_model_free():
    (call,) = chat(tools=[WEATHER, CLOCK])
    assert [spec.name for spec in call.tool_specs] == ["weather", "clock"]
    assert call.constraint is None


def test_no_tool_is_shown_when_none_may_be_called():
    (call,) = chat(tools=[WEATHER], tool_choice="none")
    assert call.tool_specs == ()


def test_a_required_call_is_constrained_to_the_tools():
    schema = schema_of(chat(tools=[WEATHER, CLOCK], tool_choice="required")[0])
    names = [choice["properties"]["name"]["const"] for choice in schema["anyOf"]]
    assert names == ["weather", "clock"]


def test_a_named_tool_is_the_only_one_offered():
    choice = {"type": "function", "function": {"name": "clock"}}
    (call,) = chat(tools=[WEATHER, CLOCK], tool_choice=choice)
    assert [spec.name for spec in call.tool_specs] == ["clock"]
    assert len(schema_of(call)["anyOf"]) == 1


def test_allowed_tools_narrow_what_is_offered():
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "clock"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    (call,) = chat(tools=[WEATHER, CLOCK], tool_choice=choice)
    assert [spec.name for spec in call.tool_specs] == ["clock"]
    assert call.constraint is None


def test_a_choice_that_names_no_given_tool_is_refused():
    choice = {"type": "function", "function": {"name": "clock"}}
    assert refusal(tools=[WEATHER], tool_choice=choice) == ("invalid", "tool_choice")
    assert refusal(tool_choice="required") == ("invalid", "tool_choice")


def test_references_inside_a_tools_schema_still_point_at_their_target():
    spec = ToolSpec(name="weather", description="", parameters=WEATHER["function"]["parameters"])  # type: ignore[index]
    schema = call_schema((spec,))
    city = schema["$defs"]["weather"]["properties"]["city"]
    assert city == {"$ref": "#/$defs/weather/$defs/City"}
    assert schema["$defs"]["weather"]["$defs"]["City"] == {"type": "string"}


def test_a_json_answer_is_constrained_to_its_schema():
    format = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}
    assert schema_of(chat(response_format=format)[0]) == {"type": "integer"}
    assert schema_of(chat(response_format={"type": "json_object"})[0]) == {"type": "object"}


def test_a_json_answer_beside_tools_leaves_the_choice_to_the_model():
    format = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}
    schema = schema_of(chat(response_format=format, tools=[CLOCK])[0])
    (call, answer) = schema["anyOf"]
    assert call["properties"]["name"] == {"const": "clock"}
    key = answer["$ref"].removeprefix("#/$defs/")
    assert schema["$defs"][key] == {"type": "integer"}
