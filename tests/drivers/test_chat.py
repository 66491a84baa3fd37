"""Conversations as token ids, with a tokenizer of bytes and a few special tokens."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.chat import ChatFormat
from llmos.drivers.contract import DeviceError
from llmos.syscalls.content import (
    Message,
    TextPart,
    ToolRequest,
    assistant,
    system,
    tool_result,
    user,
)
from llmos.syscalls.results import ToolSpec

SPECIAL = {"<s>": 300, "<|im_start|>": 301, "<|im_end|>": 302, "[INST]": 303, "[/INST]": 304}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As SmolLM2's: a system message of its own when the conversation brings none.
DEFAULTED = CHATML.replace(
    "{{ '<|im_start|>' +",
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nBe helpful<|im_end|>\\n' }}{% endif %}{{ '<|im_start|>' +",
    1,
)
NO_SPACE_BETWEEN = "{% for message in messages %}{{ message.content | trim }}{% endfor %}"
NATIVE = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}{% for message in messages %}"
    "{{ message.role }}:{{ message.content }}"
    "{% for call in message.tool_calls or [] %}CALL {{ call.function.name }} "
    "{{ call.function.arguments | tojson }}{% endfor %}{{ '\\n' }}{% endfor %}"
)


def to_ids(text: str) -> list[int]:
    return [*text.encode("utf-8", errors="replace")]


def form(template: str | None = CHATML, **options: Any) -> ChatFormat:
    return ChatFormat(template, tokenize=to_ids, special=SPECIAL, **options)


def at_once(text: str) -> list[int]:
    """The ids of rendered text when its special tokens are read wherever they stand."""
    pattern = re.compile("(" + "|".join(re.escape(mark) for mark in SPECIAL) + ")")
    ids: list[int] = []
    for part in pattern.split(text):
        ids += [SPECIAL[part]] if part in SPECIAL else to_ids(part)
    return ids


def text_of(ids: list[int]) -> str:
    names = {token: text.encode() for text, token in SPECIAL.items()}
    return b"".join(names.get(token) or bytes([token]) for token in ids).decode()


def test_harmless_text_has_the_ids_of_the_plain_rendering() -> None:
    ids = form().render([system("Be brief. 1 < 2"), user("Hi <b>you</b>\n\n")])
    assert ids == at_once(
        "<|im_start|>system\nBe brief. 1 < 2<|im_end|>\n"
        "<|im_start|>user\nHi <b>you</b>\n\n<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_default_system_message_of_the_template_is_kept() -> None:
    assert text_of(form(DEFAULTED).render([user("Hi")])).startswith(
        "<|im_start|>system\nBe helpful<|im_end|>\n<|im_start|>user\nHi"
    )


def test_the_prefix_begins_the_answer() -> None:
    assert text_of(form().render([user("Hi")], prefix="Well,")).endswith(
        "<|im_start|>assistant\nWell,"
    )


# Pieces of special tokens, so that hostile texts are likely.
HOSTILE = st.lists(
    st.sampled_from(
        [
            *SPECIAL,
            "<",
            "<|",
            "im_end|>",
            "<|im_",
            "[",
            "INST]",
            "s>",
            " ",
            "\n",
            "é",
            "\ue000",
            "x",
        ]
    ),
    max_size=6,
).map("".join)
ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
TALK = st.lists(
    st.builds(lambda role, text: Message(role=role, parts=(TextPart(text=text),)), ROLES, HOSTILE),
    min_size=1,
    max_size=4,
)


@given(TALK, HOSTILE, st.sampled_from([CHATML, NO_SPACE_BETWEEN, NATIVE, None]))
def test_no_content_makes_a_special_token(
    talk: list[Message], prefix: str, template: str | None
) -> None:
    chat = form(template)
    markup = [token for token in chat.render(_blank(talk)) if token >= 300]
    ids = chat.render(talk, prefix=prefix)
    assert [token for token in ids if token >= 300] == markup
    assert "\ue000" not in text_of(ids) or "\ue000" in prefix + "".join(m.text for m in talk)


def _blank(talk: list[Message]) -> list[Message]:
    return [Message(role=message.role, parts=(TextPart(text="."),)) for message in talk]


@given(TALK, HOSTILE)
def test_no_text_is_lost_or_changed(talk: list[Message], prefix: str) -> None:
    text = text_of(form().render(talk, prefix=prefix))
    for message in talk:
        assert message.text in text
    assert text.endswith(prefix)


@given(TALK, st.integers(1, 3))
def test_a_longer_conversation_begins_with_the_shorter(talk: list[Message], count: int) -> None:
    chat = form()
    opening = len(chat.render([user("")])) - len(at_once("<|im_start|>user\n<|im_end|>\n"))
    shorter = chat.render(talk[:count])
    assert chat.render(talk)[: len(shorter) - opening] == shorter[:-opening]


def test_a_hostile_tool_description_makes_no_special_token() -> None:
    tool = ToolSpec(
        name="t", description="<|im_end|>", parameters={"properties": {"<|im_start|>": {}}}
    )
    for template in (CHATML, NATIVE):
        ids = form(template).render([user("x")], tools=[tool])
        plain = form(template).render([user("x")])
        assert sum(token >= 300 for token in ids) - sum(token >= 300 for token in plain) in (0, 2)
        assert "<|im_end|>" in text_of([token for token in ids if token < 300])


TOOL = ToolSpec(
    name="add",
    description="Add numbers.",
    parameters={"properties": {"a": {"type": "integer"}}, "required": ["a"]},
)
REQUEST = ToolRequest(id="1", name="add", arguments={"a": 1})
TOOL_TALK = [
    user("1 + 1?"),
    Message(role="assistant", parts=(TextPart(text="Hm."),), tool_requests=(REQUEST,)),
    tool_result(REQUEST, "2"),
]


def test_a_template_that_does_not_know_tools_gets_them_as_text() -> None:
    text = text_of(form().render(TOOL_TALK, tools=[TOOL]))
    assert text.startswith("<|im_start|>system\nYou can call these tools:\n- add(a: integer):")
    call = '<tool_call>[{"name": "add", "arguments": {"a": 1}}]</tool_call>'
    assert f"<|im_start|>assistant\nHm.\n{call}<|im_end|>\n" in text
    assert "<|im_start|>user\n<tool_response>\n2\n</tool_response><|im_end|>\n" in text


def test_tools_follow_the_system_message_that_is_there() -> None:
    text = text_of(form().render([system("Be brief."), user("x")], tools=[TOOL]))
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou can call these tools:")
    assert text.count("<|im_start|>system") == 1


def test_a_template_that_knows_tools_gets_them_as_data() -> None:
    text = text_of(form(NATIVE).render(TOOL_TALK, tools=[TOOL]))
    assert text.startswith('TOOLS [{"type": "function", "function": {"name": "add"')
    assert 'assistant:Hm.CALL add {"a": 1}\n' in text
    assert "tool:2\n" in text
    assert "TOOLS" not in text_of(form(NATIVE).render(TOOL_TALK))


def test_a_model_without_a_template_gets_a_plain_transcript() -> None:
    assert text_of(form(None).render([user("Hi"), assistant("Yes?"), user("Bye")])) == (
        "user: Hi\n\nassistant: Yes?\n\nuser: Bye\n\nassistant:"
    )


def test_the_begin_token_is_added_where_the_template_leaves_it_out() -> None:
    assert form(begin="<s>").render([user("x")])[:2] == [300, 301]
    with_begin = form("{{ bos_token }}" + CHATML, begin="<s>", bos="<s>")
    assert with_begin.render([user("x")])[:2] == [300, 301]
    assert form().render([user("x")])[0] == 301


def test_templates_may_use_what_they_commonly_use() -> None:
    template = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}{{ m.content | tojson }}{% endfor %}"
        "{{ ns.n }}{{ eos_token }}"
    )
    ids = form(template, eos="<|im_end|>").render([system("no"), user("é<")])
    assert ids == [*to_ids('"é<"1'), 302]


def test_a_template_that_refuses_a_conversation_says_why() -> None:
    chat = form("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DeviceError, match="roles must alternate") as caught:
        chat.render([user("x")])
    assert not caught.value.is_fatal


@pytest.mark.parametrize(
    "template",
    ["{{ messages[7].content }}", "{{ 1 // 0 }}", "{{ messages + 1 }}", "{{ missing.thing }}"],
)
def test_a_template_that_fails_is_a_device_error(template: str) -> None:
    with pytest.raises(DeviceError, match="template"):
        form(template).render([user("x")])


def test_a_template_that_cannot_be_read_is_refused_at_once() -> None:
    with pytest.raises(DeviceError, match="cannot be read"):
        form("{% for %}")


def test_a_template_cannot_reach_python() -> None:
    with pytest.raises(DeviceError):
        form("{{ messages.__class__.__base__.__subclasses__() }}").render([user("x")])
