from __future__ import annotations

from collections.abc import Sequence

from llmos.drivers.rows.kinds import ChatRow
from llmos.drivers.tool_text import parse_tool_requests
from llmos.drivers.training.instruct import encode_row, encode_rows
from llmos.syscalls.content import Message, ToolRequest, assistant, system, user
from llmos.syscalls.results import ToolSpec

END = 999


class Characters:
    """A conversation format of one token a character, roles in brackets."""

    end_token = END

    def render(
        self, messages: Sequence[Message], /, *, tools: Sequence[ToolSpec] = ()
    ) -> list[int]:
        offered = "".join(f"[{tool.name}]" for tool in tools)
        said = "".join(f"[{m.role}]{m.text}" for m in messages)
        return self.tokenize(f"{offered}{said}[assistant]")

    def tokenize(self, text: str, /) -> list[int]:
        return [ord(character) for character in text]


def test_only_the_last_answer_and_its_end_are_targets() -> None:
    messages = (system("s"), user("a"), assistant("b"), user("c"))
    item = encode_row(messages, "dd", "row 1", Characters())
    assert item.tokens[item.payload :] == (ord("d"), ord("d"), END)
    assert item.origin == "row 1"


def test_tools_are_offered_and_requests_of_them_are_targets() -> None:
    request = ToolRequest(id="1", name="add", arguments={"a": 1})
    answer = Message(role="assistant", tool_requests=(request,))
    tool = ToolSpec(name="add", description="Add.", parameters={})
    rows = [ChatRow((user("a"), answer), "row 1", tools=(tool,))]
    (item,) = encode_rows(rows, Characters(), max_length_tokens=200).items
    text = "".join(chr(token) for token in item.tokens[:-1])
    assert text.startswith("[add][user]a[assistant]<tool_call>")
    assert parse_tool_requests(text[item.payload :])[1][0].arguments == {"a": 1}


def test_rows_over_the_limit_are_cut_or_left_out_and_named() -> None:
    chat = Characters()
    question = user("q")
    prompt_tokens = len(chat.render((question,)))
    rows = [
        ChatRow((question, assistant("a")), "fits"),
        ChatRow((question, assistant("a" * 50)), "loses its end"),
        ChatRow((user("q" * 50), assistant("a")), "has no room for an answer"),
    ]
    encoded = encode_rows(rows, chat, max_length_tokens=prompt_tokens + 3)
    assert [item.origin for item in encoded.items] == ["fits", "loses its end"]
    assert encoded.items[0].tokens[-1] == END
    assert len(encoded.items[1].tokens) - encoded.items[1].payload == 3
    assert END not in encoded.items[1].tokens
    assert encoded.truncated == ("loses its end",)
    assert encoded.skipped == ("has no room for an answer",)
