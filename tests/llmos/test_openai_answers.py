"""Results as OpenAI's answers: finish reasons, calls in text, logprobs, errors."""

from __future__ import annotations

import base64
import struct
from typing import Any, get_args

import pytest

from llmos.openai_answers import (
    ChatAnswer,
    CompletionAnswer,
    embeddings,
    error_answer,
    head,
    status,
    usage,
)
from llmos.syscalls.content import Message, TextPart, ToolRequest
from llmos.syscalls.errors import ERROR_CODES, SyscallError
from llmos.syscalls.results import (
    Embedded,
    FinishReason,
    Generated,
    TokenChoice,
    TokenLogprob,
    Usage,
)


def generated(text: str, finish: FinishReason = "stop", **fields: Any) -> Generated:
    requests = fields.pop("requests", ())
    parts = (TextPart(text=text),) if text else ()
    return Generated(
        message=Message(role="assistant", parts=parts, tool_requests=requests),
        finish=finish,
        usage=Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=3),
        model="m",
        device="m",
        **fields,
    )


def answer(*, has_tools: bool = False, can_call_many: bool = True) -> ChatAnswer:
    return ChatAnswer(head("chatcmpl", "m"), has_tools=has_tools, can_call_many=can_call_many)


# --- chat -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("finish", get_args(FinishReason))
def test_every_way_to_finish_has_openais_word(finish: FinishReason):
    choice = answer().whole([generated("text", finish)])["choices"][0]
    assert choice["finish_reason"] in {"stop", "length"}


def test_a_call_is_written_with_its_arguments_as_a_string():
    request = ToolRequest(id="x", name="clock", arguments={"zone": "UTC"})
    called = generated("", "tool_requests", requests=(request,))
    choice = answer(has_tools=True).whole([called])["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "clock", "arguments": '{"zone": "UTC"}'}


def test_equal_calls_of_two_answers_have_different_ids():
    request = ToolRequest(id="x", name="clock", arguments={})
    called = generated("", "tool_requests", requests=(request,))
    whole = answer(has_tools=True).whole([called, called])
    first, second = (choice["message"]["tool_calls"][0]["id"] for choice in whole["choices"])
    assert first != second


def test_only_one_call_is_given_when_only_one_is_allowed():
    requests = tuple(ToolRequest(id=id, name="clock", arguments={}) for id in "ab")
    many = generated("", "tool_requests", requests=requests)
    for can_call_many, count in ((True, 2), (False, 1)):
        message = answer(has_tools=True, can_call_many=can_call_many).whole([many])
        assert len(message["choices"][0]["message"]["tool_calls"]) == count


def test_chunks_of_a_choice_add_up_to_its_text():
    chat = answer()
    chunks = [chat.piece(0, "Hel"), chat.piece(0, "lo"), *chat.ending(0, generated("Hello"))]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk]
    assert deltas[0] == {"role": "assistant", "content": "Hel"}
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk] == [
        None,
        None,
        "stop",
    ]


def test_with_tools_offered_text_is_held_until_it_is_known_to_be_no_call():
    chat = answer(has_tools=True)
    assert chat.piece(0, "It is") is None
    content, end = chat.ending(0, generated("It is noon."))
    assert content["choices"][0]["delta"] == {"role": "assistant", "content": "It is noon."}
    assert end["choices"][0]["finish_reason"] == "stop"


def test_logprobs_give_text_and_bytes_of_each_token():
    token = TokenLogprob(
        token_id=1,
        text="é",
        logprob=-0.5,
        top=(TokenChoice(token_id=2, text="\ufffd", logprob=-1.0),),
    )
    choice = answer().whole([generated("é", logprobs=(token,))])["choices"][0]
    (content,) = choice["logprobs"]["content"]
    assert (content["token"], content["bytes"], content["logprob"]) == ("é", [195, 169], -0.5)
    assert content["top_logprobs"][0]["bytes"] is None


def test_a_prompt_that_several_choices_continue_counts_once():
    assert usage([generated("a"), generated("b")], per_prompt=2) == {
        "prompt_tokens": 10,
        "completion_tokens": 6,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_completion_logprobs_say_where_each_token_stands():
    tokens = tuple(TokenLogprob(token_id=1, text=text, logprob=-1.0) for text in ("ab", "c"))
    completion = CompletionAnswer(head("cmpl", "m"), per_prompt=1)
    choice = completion.whole([generated("abc", logprobs=tokens)])["choices"][0]
    assert choice["logprobs"]["text_offset"] == [0, 2]


# --- embeddings and errors ------------------------------------------------------------------------


def test_embeddings_in_base64_are_little_endian_floats():
    embedded = Embedded(vectors=((0.5, -1.0),), model="e", dimensions=2, tokens=3)
    (entry,) = embeddings(embedded, "base64")["data"]
    assert struct.unpack("<2f", base64.b64decode(entry["embedding"])) == (0.5, -1.0)
    assert embeddings(embedded, "float")["data"][0]["embedding"] == [0.5, -1.0]


@pytest.mark.parametrize("code", ERROR_CODES)
def test_every_error_code_has_a_status(code: Any):
    known = status(SyscallError(code, "because"))
    assert 400 <= known.http < 600
    assert (known.http == 429) <= (known.retry_after_s is not None)


def test_an_error_names_the_field_and_keeps_the_numbers():
    problem = SyscallError("context_overflow", "5000 of 4096", prompt_tokens=5000)
    error = error_answer(problem)["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["fields"] == {"prompt_tokens": 5000}
    assert error_answer(SyscallError("invalid", "n: no", field="n"))["error"]["param"] == "n"
