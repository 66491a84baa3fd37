"""What is asked in which server's words, and what is refused."""

from __future__ import annotations

import pytest

from llmos.drivers.chat_model import ChatRequest, Conversation, UnsupportedError
from llmos.drivers.remote_dialect import (
    LLAMA_CPP_PYTHON,
    LLAMA_SERVER,
    LLMOS,
    OPENAI,
    VLLM,
    Dialect,
    dialect_of,
)
from llmos.drivers.remote_wire import body_of
from llmos.syscalls.content import Message, ToolRequest, tool_result, user
from llmos.syscalls.options import (
    ChoiceConstraint,
    GrammarConstraint,
    JsonSchemaConstraint,
    RegexConstraint,
    Sampling,
)
from llmos.syscalls.results import ToolSpec
from llmos.syscalls.values import JsonObject

ALL = (OPENAI, LLMOS, VLLM, LLAMA_SERVER, LLAMA_CPP_PYTHON)


def body(dialect: Dialect, **fields: object) -> JsonObject:
    conversation = fields.pop("conversation", Conversation([user("hi")]))
    assert isinstance(conversation, Conversation)
    sampling = fields.pop("sampling", Sampling())
    assert isinstance(sampling, Sampling)
    request = ChatRequest(conversation, sampling, max_tokens=8, **fields)  # pyright: ignore
    return body_of(request, dialect, model="m")


@pytest.mark.parametrize(
    ("owner", "dialect"),
    [
        ("llamacpp", LLAMA_SERVER),
        ("llmos", LLMOS),
        ("me", LLAMA_CPP_PYTHON),
        ("vllm", VLLM),
        ("openai", OPENAI),
    ],
)
def test_a_server_is_known_by_the_owner_of_its_models(owner: str, dialect: Dialect) -> None:
    assert dialect_of({"owned_by": owner}) is dialect


@pytest.mark.parametrize("dialect", ALL, ids=lambda one: one.name)
def test_every_server_streams_with_its_usage_and_knows_schemas(dialect: Dialect) -> None:
    schema: JsonObject = {"type": "object"}
    found = body(dialect, constraint=JsonSchemaConstraint(json_schema=schema))
    assert found["stream"] is True
    assert found["stream_options"] == {"include_usage": True}
    assert found["response_format"]["json_schema"]["schema"] == schema
    assert found["temperature"] == 0


def test_a_servers_own_defaults_are_undone() -> None:
    assert body(LLAMA_SERVER)["top_k"] == 0
    assert body(LLAMA_SERVER)["min_p"] == 0
    assert body(VLLM)["repetition_penalty"] == 1
    assert "top_k" not in body(OPENAI)


def test_settings_are_asked_for_in_the_servers_words() -> None:
    sampling = Sampling(temperature=0.5, top_k=7, repetition_penalty=1.2, logit_bias={5: -1.0})
    assert body(LLMOS, sampling=sampling)["repetition_penalty"] == 1.2
    assert body(LLAMA_SERVER, sampling=sampling)["repeat_penalty"] == 1.2
    assert body(LLAMA_SERVER, sampling=sampling)["top_k"] == 7
    assert body(VLLM, sampling=sampling)["logit_bias"] == {"5": -1.0}


@pytest.mark.parametrize("field", ["top_k", "min_p", "repetition_penalty"])
def test_a_setting_without_a_word_for_it_is_refused(field: str) -> None:
    sampling = Sampling.model_validate({"temperature": 1.0, field: 0.5 if field != "top_k" else 3})
    with pytest.raises(UnsupportedError) as refused:
        body(OPENAI, sampling=sampling)
    assert refused.value.field == f"sampling.{field}"


def test_choices_and_patterns_go_where_they_are_understood() -> None:
    choice = ChoiceConstraint(choices=("yes", 'say "no"'))
    assert body(LLAMA_SERVER, constraint=choice)["grammar"] == r'root ::= "yes" | "say \"no\""'
    assert body(VLLM, constraint=choice)["structured_outputs"] == {"choice": ["yes", 'say "no"']}
    pattern = RegexConstraint(pattern="a+")
    assert body(VLLM, constraint=pattern)["structured_outputs"] == {"regex": "a+"}
    for dialect in (OPENAI, LLMOS, LLAMA_SERVER):
        with pytest.raises(UnsupportedError):
            body(dialect, constraint=pattern)
    with pytest.raises(UnsupportedError):
        body(VLLM, constraint=GrammarConstraint(lark='start: "a"'))


def test_an_answers_beginning_is_continued_or_refused() -> None:
    started = Conversation([user("hi")], prefix="Well")
    assert body(VLLM, conversation=started)["continue_final_message"] is True
    assert body(LLAMA_SERVER, conversation=started)["messages"][-1] == {
        "role": "assistant",
        "content": "Well",
    }
    with pytest.raises(UnsupportedError):
        body(LLMOS, conversation=started)


def test_what_needs_the_servers_tokens_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        body(VLLM, sampling=Sampling(logprobs=1))
    with pytest.raises(UnsupportedError):
        body(VLLM, stop_tokens=frozenset({2}))


def test_a_conversation_with_tools_keeps_its_form() -> None:
    request = ToolRequest(id="c1", name="clock", arguments={"zone": "UTC"})
    asked = Message(role="assistant", tool_requests=(request,))
    spec = ToolSpec(name="clock", description="The time.", parameters={"type": "object"})
    conversation = Conversation([user("time?"), asked, tool_result(request, "noon")], [spec])
    found = body(OPENAI, conversation=conversation)
    assert found["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"zone": "UTC"}'
    assert found["messages"][1]["content"] is None
    assert found["messages"][2] == {"role": "tool", "content": "noon", "tool_call_id": "c1"}
    assert found["tools"][0]["function"]["name"] == "clock"


def test_plain_text_is_a_prompt_and_sessions_are_named() -> None:
    found = body(OPENAI, conversation=Conversation(prompt="Once"), session="s1")
    assert found["prompt"] == "Once"
    assert "messages" not in found
    assert found["prompt_cache_key"] == "s1"
