"""Reading training rows: every form of file and row, and what is said of wrong ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.rows.chat_forms import conversation, to_openai, tool_to_openai, tools_of
from llmos.drivers.rows.forms import OBJECTIVES
from llmos.drivers.rows.kinds import (
    ChatRow,
    LabelledRow,
    PairRow,
    PreferRow,
    Row,
    TaggedRow,
    TextRow,
)
from llmos.drivers.rows.reading import read_and_check, read_rows
from llmos.syscalls.calls import Example
from llmos.syscalls.content import (
    Message,
    TextPart,
    ToolRequest,
    assistant,
    system,
    tool_result,
    user,
)
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ToolSpec

FIELDS = (
    *("messages", "conversations", "instruction", "input", "output", "prompt", "completion"),
    *("history", "system", "tools", "role", "content", "parts", "tool_calls", "function"),
    *("name", "arguments", "from", "value", "type", "text", "label", "tokens", "tags"),
    *("chosen", "rejected", "positive", "negative", "tool_requests"),
)
DATA = Path(__file__).parents[3] / "benchmarks" / "data"
ADD = ToolRequest(id="1", name="add", arguments={"a": 2, "b": [None, "2"]})
ADD_CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 2, "b": [null, "2"]}'},
}


def wrote(tmp_path: Path, name: str, text: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def rows_of(tmp_path: Path, objective: str, *lines: object, **options: Any) -> list[Row]:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    return read_rows(wrote(tmp_path, "r.jsonl", text), objective, name="r.jsonl", **options)


def refusal(path: Path, objective: str, name: str | None = "f") -> SyscallError:
    with pytest.raises(SyscallError) as refused:
        read_rows(path, objective, name=name)
    return refused.value


def said(role: str, content: object, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


# --- conversations --------------------------------------------------------------------------------


def test_all_forms_of_a_conversation_mean_the_same(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        "instruct",
        {"messages": [said("user", "2+2?"), said("assistant", "4")]},
        {"messages": [said("user", [{"type": "text", "text": "2+2?"}]), said("assistant", "4")]},
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": [said("user", "2+2?")], "completion": "4"},
        {"instruction": "2+2?", "input": "", "output": "4"},
        {"instruction": "2+2?", "output": "4", "source": "columns of no meaning here are let be"},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"conversations": [said("user", "2+2?"), said("assistant", "4")]},
        json.loads(Example(messages=(user("2+2?"), assistant("4"))).model_dump_json()),
    )
    assert {row.messages for row in rows if isinstance(row, ChatRow)} == {
        (user("2+2?"), assistant("4"))
    }
    assert len(rows) == 9


def test_alpaca_may_have_an_input_a_system_prompt_and_a_history(tmp_path: Path) -> None:
    (row,) = rows_of(
        tmp_path,
        "instruct",
        {
            "instruction": "Add.",
            "input": "2, 2",
            "output": "4",
            "system": "Be brief.",
            "history": [["Hi", "Hello"]],
        },
    )
    assert isinstance(row, ChatRow)
    assert row.messages == (
        system("Be brief."),
        user("Hi"),
        assistant("Hello"),
        user("Add.\n\n2, 2"),
        assistant("4"),
    )


def test_sharegpt_knows_function_calls_and_observations(tmp_path: Path) -> None:
    (row,) = rows_of(
        tmp_path,
        "instruct",
        {
            "system": "Use tools.",
            "tools": json.dumps([{"name": "add", "description": "Add.", "parameters": {}}]),
            "conversations": [
                {"from": "human", "value": "2+2?"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
                {"from": "observation", "value": "4"},
                {"from": "gpt", "value": "It is 4."},
            ],
        },
    )
    assert isinstance(row, ChatRow)
    assert [m.role for m in row.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert row.messages[2].tool_requests[0].arguments == {"a": 2}
    assert [tool.name for tool in row.tools] == ["add"]


def test_an_answer_may_be_a_tool_request(tmp_path: Path) -> None:
    (row,) = rows_of(
        tmp_path,
        "instruct",
        {"messages": [said("user", "2+2?"), said("assistant", None, tool_calls=[ADD_CALL])]},
    )
    assert isinstance(row, ChatRow)
    assert row.messages[-1] == Message(role="assistant", tool_requests=(ADD,))


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
_REQUESTS = st.builds(
    ToolRequest,
    id=st.text("abc1", min_size=1),
    name=st.text("xyz", min_size=1),
    arguments=st.dictionaries(_TEXTS, st.integers() | _TEXTS | st.none(), max_size=2),
)
_MESSAGES = st.one_of(
    st.builds(user, _TEXTS),
    st.builds(tool_result, _REQUESTS, _TEXTS),
    st.builds(
        lambda text, requests: Message(
            role="assistant",
            parts=() if text is None else (TextPart(text=text),),
            tool_requests=tuple(requests),
        ),
        st.none() | _TEXTS,
        st.lists(_REQUESTS, min_size=1, max_size=2),
    ),
)


@given(st.lists(_MESSAGES, min_size=1, max_size=4))
def test_messages_survive_openais_form(messages: list[Message]) -> None:
    written = json.loads(json.dumps([to_openai(message) for message in messages]))
    assert conversation(written, "row 1", "messages") == tuple(messages)


def test_tools_survive_openais_form() -> None:
    tool = ToolSpec(name="add", description="Add.", parameters={"type": "object"})
    assert tools_of({"tools": [tool_to_openai(tool)]}, "row 1") == (tool,)


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
        ({"prompt": "hi", "completions": "x"}, "completion", "the row has 'completions'"),
        ({"prompt": "hi", "completion": "\ud800"}, "completion", "half a surrogate pair"),
        ({"instruction": "hi", "input": 3, "output": "x"}, "input", "not text but int"),
        ({"instruction": "hi", "history": ["x"], "output": "x"}, "history.0", "[question, answer]"),
        ({"conversations": [{"from": "cat", "value": "x"}]}, "conversations.0.from", "'cat'"),
        (
            {"messages": [said("user", "a"), said("assistant", "", tool_calls=[{"function": 1}])]},
            "messages.1.tool_calls.0.function",
            "must be an object",
        ),
        (
            {
                "messages": [
                    said("user", "a"),
                    said(
                        "assistant",
                        "",
                        tool_calls=[{"function": {"name": "f", "arguments": "{"}}],
                    ),
                ]
            },
            "messages.1.tool_calls.0.function.arguments",
            "not JSON",
        ),
    ],
)
def test_a_bad_conversation_is_refused_by_file_line_and_field(
    tmp_path: Path, line: object, field: str, why: str
) -> None:
    text = '{"prompt": "fine", "completion": "fine"}\n' + json.dumps(line)
    error = refusal(wrote(tmp_path, "r.jsonl", text), "instruct", "r.jsonl")
    assert error.code == "invalid"
    assert error.message.startswith(f"r.jsonl:2: {field}: ")
    assert why in error.message
    assert error.fields == {"field": field, "origin": "r.jsonl:2"}


# --- the other objectives -------------------------------------------------------------------------


def test_preferences_are_read_in_the_forms_in_use(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        "prefer",
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
        {"messages": [said("user", "Hi")], "chosen": "Hello", "rejected": "Go away"},
        {
            "chosen": [said("user", "Hi"), said("assistant", "Hello")],
            "rejected": [said("user", "Hi"), said("assistant", "Go away")],
        },
        {
            "prompt": "Hi",
            "chosen": [said("assistant", "Hello")],
            "rejected": [said("assistant", "Go away")],
        },
    )
    assert {row[:3] for row in rows} == {((user("Hi"),), "Hello", "Go away")}
    assert all(isinstance(row, PreferRow) for row in rows)


def test_labelled_rows_know_the_usual_names_and_whole_numbers(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        "classify",
        {"text": "a", "label": "x"},
        {"sentence": "a", "intent": "x"},
        {"utterance": "a", "category": " x "},
        {"text": "a", "label": 3, "intent": "ignored: label is the first name"},
        {"text": "a", "label": True},
    )
    assert [row.label for row in rows if isinstance(row, LabelledRow)] == ["x"] * 3 + ["3", "true"]


def test_pairs_may_lack_a_negative(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        "embed",
        {"anchor": "a", "positive": "b"},
        {"query": "a", "passage": "b", "negative": "c"},
    )
    assert [row[:3] for row in rows] == [("a", "b", None), ("a", "b", "c")]
    assert all(isinstance(row, PairRow) for row in rows)


@pytest.mark.parametrize(
    ("objective", "line", "field", "why"),
    [
        ("classify", {"label": "x"}, "text", "missing (also read: sentence"),
        ("classify", {"text": " ", "label": "x"}, "text", "blank"),
        ("classify", {"text": "a", "label": 1.5}, "label", "not text but float"),
        ("classify", {"text": "a"}, "label", "the row has text"),
        (
            "classify",
            {"text": "a", "intent": "x", "category": "y"},
            "category and intent",
            "either could be the label",
        ),
        ("pretrain", {"text": ""}, "text", "blank"),
        ("prefer", {"prompt": "a", "chosen": "b", "rejected": "b"}, "rejected", "the same"),
        ("prefer", {"prompt": "a", "chosen": "b"}, "rejected", "missing"),
        ("embed", {"text": "a", "positive": "b", "negative": "b"}, "negative", "the same"),
        ("tag", {"tokens": ["a"], "tags": ["O", "O"]}, "tags", "2 tags for 1 tokens"),
        ("tag", {"tokens": [], "tags": []}, "tokens", "empty"),
        ("tag", {"tokens": "a b", "tags": ["O", "O"]}, "tokens", "not a list but str"),
        ("tag", {"tokens": ["a", " "], "tags": ["O", "O"]}, "tokens.1", "blank"),
        ("tag", {"tokens": ["a"], "tags": ["S-per"]}, "tags.0", "no BIO label"),
        ("tag", {"tokens": ["a"], "ner_tags": [3]}, "ner_tags.0", "not text but int"),
    ],
)
def test_a_bad_row_is_refused_by_line_and_field(
    tmp_path: Path, objective: str, line: object, field: str, why: str
) -> None:
    error = refusal(wrote(tmp_path, "r.jsonl", json.dumps(line)), objective)
    assert error.message.startswith(f"f:1: {field}: ")
    assert why in error.message


def test_a_group_is_read_where_asked_for_and_refused_where_missing(tmp_path: Path) -> None:
    line = {"text": "a", "label": "x", "author": 7}
    (row,) = rows_of(tmp_path, "classify", line, group_field="author")
    assert row.group == "7"
    with pytest.raises(SyscallError, match="book: names no group"):
        rows_of(tmp_path, "classify", line, group_field="book")


def test_an_unknown_objective_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match="instruct, pretrain"):
        rows_of(tmp_path, "sing", {"text": "a"})


# --- files ----------------------------------------------------------------------------------------


def test_origins_name_file_and_line_and_count_blank_lines(tmp_path: Path) -> None:
    text = '\ufeff\n{"prompt": "a", "completion": "b"}\r\n\n{"prompt": "a", "completion": "b"}'
    path = wrote(tmp_path, "a.jsonl", text)
    origins = [row.origin for row in read_rows(path, "instruct", name="a.jsonl")]
    assert origins == ["a.jsonl:2", "a.jsonl:4"]
    assert [row.origin for row in read_rows(path, "instruct")] == ["row 2", "row 4"]


def test_a_json_list_is_read(tmp_path: Path) -> None:
    path = wrote(tmp_path, "a.json", '[{"text": "a", "label": "x"}, 3]')
    rows, problems = read_and_check(path, "classify", name="a.json")
    assert [row.origin for row in rows] == ["a.json: row 1"]
    assert "a.json: row 2: (line): not a JSON object but int" in problems[0].message


def test_csv_fields_may_be_quoted_and_span_lines(tmp_path: Path) -> None:
    text = 'text,label\n"one, ""two""\nthree",x\n\nfour,y\n'
    rows = read_rows(wrote(tmp_path, "a.csv", text), "classify", name="a.csv")
    assert [row[:3] for row in rows] == [
        ('one, "two"\nthree', "x", "a.csv:2"),
        ("four", "y", "a.csv:5"),
    ]
    tabs = wrote(tmp_path, "a.tsv", "text\tlabel\na, b\tx\n")
    assert read_rows(tabs, "classify")[0][:2] == ("a, b", "x")


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.csv", b"text,text\na,b\n", "f:1: text: a column is named twice"),
        ("a.csv", b"text,\na,b\n", "f:1: (line): a column has no name"),
        ("a.csv", b"text,label\na,x,y\n", "f:2: (line): 3 fields where the first line names 2"),
        ("a.csv", b'text,label\n"a,x\n', "f:2: (line): not CSV"),
        ("a.csv", b"text,label\na,x\n\xff,y\n", "f:3: (line): not UTF-8"),
        ("a.csv", b"text,label\n", "data: f: holds no rows"),
        ("a.jsonl", b"", "data: f: holds no rows"),
        ("a.json", b"[]", "data: f: holds no rows"),
        ("a.json", b'{"text": "a"}\n{"text": "b"}', "named .jsonl"),
        ("a.json", b'{"text": "a"}', "must hold a list"),
        ("a.jsonl", b'{"text": ', "f:1: (line): not JSON"),
        ("a.jsonl", b'{"text": "\xff"}', "f:1: (line): not UTF-8"),
        ("a.parquet", b"no parquet", "data: f: not a Parquet file"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, name: str, data: bytes, why: str) -> None:
    error = refusal(wrote(tmp_path, name, data), "classify")
    assert error.code == "invalid"
    assert why in error.message


def test_sentences_are_read_from_columns(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O\n\nAnn B-per\nsings O\n\t\nin\tO\nNew York\tB-loc\n"
    rows = read_rows(wrote(tmp_path, "a.conll", text), "tag", name="a.conll")
    assert rows == [
        TaggedRow(("Ann", "sings"), ("B-per", "O"), "a.conll:3"),
        TaggedRow(("in", "New York"), ("O", "B-loc"), "a.conll:6"),
    ]


def test_a_bad_line_of_a_sentence_is_named_and_costs_that_sentence_only(tmp_path: Path) -> None:
    text = "a O\nb\n\nc O\n\nd X-y\n"
    rows, problems = read_and_check(wrote(tmp_path, "a.conll", text), "tag", name="f")
    assert [row.origin for row in rows] == ["f:4"]
    assert [str(problem.fields["origin"]) for problem in problems] == ["f:2", "f:6"]


def test_text_is_read_by_paragraphs(tmp_path: Path) -> None:
    path = wrote(tmp_path, "a.txt", "\n  one\ntwo\n\n\nthree")
    assert read_rows(path, "pretrain", name="a.txt") == [
        TextRow("  one\ntwo", "a.txt:2"),
        TextRow("three", "a.txt:6"),
    ]


def test_a_folder_of_text_is_read_file_by_file_each_a_group(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    wrote(tmp_path, "b.md", "two")
    wrote(tmp_path / "inner", "c.txt", "three")
    wrote(tmp_path, "a.txt", "one")
    wrote(tmp_path, "a.bin", b"\xff")
    rows = read_rows(tmp_path, "pretrain", name="books")
    assert rows == [
        TextRow("one", "books/a.txt:1", "a.txt"),
        TextRow("two", "books/b.md:1", "b.md"),
        TextRow("three", "books/inner/c.txt:1", "inner/c.txt"),
    ]
    with pytest.raises(SyscallError, match="no text file"):
        (tmp_path / "empty").mkdir()
        read_rows(tmp_path / "empty", "pretrain")


def test_parquet_is_read_with_the_names_of_its_classes(tmp_path: Path) -> None:
    datasets: Any = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-per"])),
        }
    )
    made = datasets.Dataset.from_dict(
        {"tokens": [["Ann", "sings"]], "ner_tags": [[1, 0]]}, features=features
    )
    made.to_parquet(str(tmp_path / "a.parquet"))
    made.save_to_disk(str(tmp_path / "saved"))
    for name in ("a.parquet", "saved"):
        rows = read_rows(tmp_path / name, "tag", name=name)
        assert rows == [TaggedRow(("Ann", "sings"), ("B-per", "O"), f"{name}: row 1")]


def test_a_row_of_a_megabyte_is_read(tmp_path: Path) -> None:
    text = "word " * 210_000
    assert len(rows_of(tmp_path, "classify", {"text": text, "label": "x"})) == 1
    path = wrote(tmp_path, "a.csv", f"text,label\n{text},x\n")
    assert len(read_rows(path, "classify")) == 1


def test_no_file_and_a_file_that_may_not_be_read_are_told_apart(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.parquet", "tag").code == "not_found"
    if os.geteuid() != 0:
        locked = wrote(tmp_path, "a.csv", "text,label\n")
        locked.chmod(0)
        assert refusal(locked, "classify").code == "storage"


def test_all_problems_are_listed_up_to_a_bound(tmp_path: Path) -> None:
    lines = "\n".join(['{"text": "a", "label": "x"}', "{", '{"text": ""}', "[]"])
    path = wrote(tmp_path, "a.jsonl", lines)
    rows, problems = read_and_check(path, "classify", name="f")
    assert (len(rows), len(problems)) == (1, 3)
    assert len(read_and_check(path, "classify", most=2)[1]) == 2


def test_the_benchmarks_data_is_whole() -> None:
    train = read_rows(DATA / "wnut17_train.conll", "tag")
    intents = read_rows(DATA / "banking77_train.csv", "classify")
    assert (len(train), len(read_rows(DATA / "wnut17_dev.conll", "tag"))) == (3394, 1009)
    assert len(intents) == 10_003
    assert len({row.label for row in intents if isinstance(row, LabelledRow)}) == 77


# --- anything at all ------------------------------------------------------------------------------

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".conll", ".txt", ".parquet", ".other")
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=12,
)


def read_or_refused(path: Path, objective: str) -> None:
    """Read a file; whatever is wrong must be said as it should be."""
    try:
        rows, problems = read_and_check(path, objective, name="f")
    except SyscallError as refused:
        assert refused.code == "invalid"
    else:
        assert rows or problems
        assert all(problem.code == "invalid" for problem in problems)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(data=st.binary(max_size=200), objective=st.sampled_from(OBJECTIVES))
def test_any_bytes_are_rows_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: bytes, objective: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(data)
    read_or_refused(path, objective)


@given(
    row=st.dictionaries(st.sampled_from(FIELDS), _JSON, max_size=6),
    objective=st.sampled_from(OBJECTIVES),
)
def test_any_object_is_a_row_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any], objective: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps(row))
    read_or_refused(path, objective)
