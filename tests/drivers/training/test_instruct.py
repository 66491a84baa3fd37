from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.training.instruct import (
    EncodedRow,
    Row,
    encode_row,
    encode_rows,
    read_rows,
    shuffled_batches,
    split_rows,
)
from llmos.syscalls.calls import Example
from llmos.syscalls.content import Message, assistant, system, user
from llmos.syscalls.errors import SyscallError

END = 999


class Characters:
    """A conversation format of one token a character, roles in brackets."""

    end_token = END

    def render(self, messages: Sequence[Message], /) -> list[int]:
        return self.tokenize("".join(f"[{m.role}]{m.text}" for m in messages) + "[assistant]")

    def tokenize(self, text: str, /) -> list[int]:
        return [ord(character) for character in text]


def rows_of(tmp_path: Path, *lines: object, name: str | None = "rows.jsonl") -> list[Row]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return read_rows(path, name=name)


def said(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def refusal(tmp_path: Path, *lines: object) -> SyscallError:
    with pytest.raises(SyscallError) as refused:
        rows_of(tmp_path, *lines)
    assert refused.value.code == "invalid"
    return refused.value


# --- reading --------------------------------------------------------------------------------------


def test_all_forms_of_a_row_mean_the_same_conversation(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        {"messages": [said("user", "2+2?"), said("assistant", "4")]},
        {"prompt": "2+2?", "completion": "4"},
        {"instruction": "2+2?", "input": "", "output": "4"},
        {"instruction": "2+2?", "output": "4", "source": "columns of no meaning here are let be"},
        json.loads(Example(messages=(user("2+2?"), assistant("4"))).model_dump_json()),
    )
    assert {row.messages for row in rows} == {(user("2+2?"), assistant("4"))}


def test_an_input_follows_its_instruction_after_a_blank_line(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, {"instruction": "Add.", "input": "2, 2", "output": "4"})
    assert row.messages[0] == user("Add.\n\n2, 2")


def test_origins_name_file_and_line_and_count_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"prompt": "a", "completion": "b"}\r\n\n{"prompt": "a", "completion": "b"}')
    assert [row.origin for row in read_rows(path, name="a.jsonl")] == ["a.jsonl:2", "a.jsonl:4"]
    assert [row.origin for row in read_rows(path)] == ["row 2", "row 4"]


@pytest.mark.parametrize(
    ("line", "field", "why"),
    [
        (["a list"], "(line)", "not a JSON object but list"),
        ({"text": "hello"}, "(line)", "none of their fields"),
        ({"messages": [], "prompt": "a"}, "(line)", "messages and prompt"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": "hi"}, "messages", "must be a list"),
        ({"messages": ["hi"]}, "messages.0", "must be an object but is str"),
        ({"messages": [said("user", None)]}, "messages.0.content", "missing"),
        ({"messages": [said("user", 3)]}, "messages.0.content", "not text but int"),
        ({"messages": [said("robot", "hi")]}, "messages.0.role", "Input should be"),
        ({"messages": [said("user", "hi")]}, "messages.0.role", "must be the assistant's"),
        ({"messages": [said("assistant", "hi")]}, "messages", "put a prompt first"),
        (
            {"messages": [said("user", "hi"), said("assistant", " ")]},
            "messages.1.content",
            "the answer is empty",
        ),
        (
            {
                "messages": [
                    {"role": "user", "parts": [{"type": "file", "path": "a.png"}]},
                    said("assistant", "a cat"),
                ]
            },
            "messages.0.parts",
            "not file",
        ),
        ({"prompt": "hi"}, "completion", "missing"),
        ({"instruction": "hi", "input": 3, "output": "x"}, "input", "not text but int"),
    ],
)
def test_a_bad_row_is_refused_by_file_line_and_field(
    tmp_path: Path, line: object, field: str, why: str
) -> None:
    error = refusal(tmp_path, {"prompt": "fine", "completion": "fine"}, line)
    assert error.message.startswith(f"rows.jsonl:2: {field}: ")
    assert why in error.message
    assert error.fields == {"field": field, "origin": "rows.jsonl:2"}


def test_a_line_that_is_no_json_or_no_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for data, why in ((b'{"prompt": ', "not JSON"), (b'{"prompt": "\xff"}', "not UTF-8")):
        path.write_bytes(data)
        with pytest.raises(SyscallError, match=f"rows:1: .line.: {why}"):
            read_rows(path, name="rows")


def test_an_answer_of_tool_requests_is_refused(tmp_path: Path) -> None:
    request = {"id": "1", "name": "add", "arguments": {}}
    error = refusal(
        tmp_path,
        {"messages": [said("user", "hi"), {**said("assistant", "x"), "tool_requests": [request]}]},
    )
    assert error.fields["field"] == "messages.1.tool_requests"


def test_a_file_without_rows_and_no_file_are_refused(tmp_path: Path) -> None:
    assert "holds no rows" in refusal(tmp_path).message
    with pytest.raises(SyscallError) as missing:
        read_rows(tmp_path / "none.jsonl")
    assert missing.value.code == "not_found"


# --- tokens ---------------------------------------------------------------------------------------


def test_only_the_last_answer_and_its_end_are_targets() -> None:
    row = Row((system("s"), user("a"), assistant("b"), user("c"), assistant("dd")), "row 1")
    encoded = encode_row(row, Characters())
    targets = encoded.tokens[encoded.prompt_tokens :]
    assert targets == (ord("d"), ord("d"), END)
    assert encoded.target_tokens == 3


def test_rows_over_the_limit_are_cut_or_left_out_and_named() -> None:
    chat = Characters()
    question = user("q")
    prompt_tokens = len(chat.render((question,)))
    rows = [
        Row((question, assistant("a")), "fits"),
        Row((question, assistant("a" * 50)), "loses its end"),
        Row((user("q" * 50), assistant("a")), "has no room for an answer"),
    ]
    encoded = encode_rows(rows, chat, max_length_tokens=prompt_tokens + 3)
    assert [row.origin for row in encoded.rows] == ["fits", "loses its end"]
    assert encoded.rows[0].tokens[-1] == END
    assert encoded.rows[1].target_tokens == 3
    assert END not in encoded.rows[1].tokens
    assert encoded.truncated == ("loses its end",)
    assert encoded.skipped == ("has no room for an answer",)


# --- split and batches ----------------------------------------------------------------------------


def conversations(texts: Sequence[str]) -> list[Row]:
    return [Row((user(text), assistant(text)), f"row {i}") for i, text in enumerate(texts)]


@given(
    texts=st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40).filter(
        lambda texts: len(set(texts)) > 1
    ),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_a_split_loses_nothing_and_leaks_nothing(texts: list[str], share: float, seed: int) -> None:
    rows = conversations(texts)
    train, held_out = split_rows(rows, share=share, seed=seed)
    assert sorted(row.origin for row in train + held_out) == sorted(row.origin for row in rows)
    assert train and held_out
    assert not {row.messages for row in train} & {row.messages for row in held_out}
    assert (train, held_out) == split_rows(rows, share=share, seed=seed)


def test_a_split_depends_on_the_seed_and_holds_out_the_share() -> None:
    rows = conversations([str(number) for number in range(100)])
    _, first = split_rows(rows, share=0.1, seed=1)
    _, second = split_rows(rows, share=0.1, seed=2)
    assert len(first) == len(second) == 10
    assert first != second


def test_a_share_of_zero_holds_nothing_out_and_equal_rows_cannot_be_split() -> None:
    rows = conversations(["a", "a"])
    assert split_rows(rows, share=0.0, seed=0) == (rows, [])
    with pytest.raises(SyscallError, match="eval_share"):
        split_rows(rows, share=0.5, seed=0)


def test_every_epoch_holds_every_row_once_in_an_order_of_its_own() -> None:
    rows = [EncodedRow((1, 2), 1, str(number)) for number in range(10)]
    batches = list(itertools.islice(shuffled_batches(rows, batch_size=4, seed=0), 6))
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    first, second = (list(itertools.chain(*epoch)) for epoch in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == sorted(rows)
    assert first != second
