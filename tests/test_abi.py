"""Every syscall is served, has a method, a JSON form and an entry in the reference."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.abi_docs import abi_json, abi_markdown, error_meanings
from llmos.syscalls import calls
from llmos.syscalls.calls import Call
from llmos.syscalls.content import (
    AudioPart,
    FilePart,
    ImagePart,
    Message,
    TextPart,
    ToolRequest,
    user,
)
from llmos.syscalls.errors import ERROR_CODES, SyscallError
from llmos.syscalls.evaluation import Between, OneOf
from llmos.syscalls.options import (
    ChoiceConstraint,
    GrammarConstraint,
    JsonSchemaConstraint,
    RegexConstraint,
    Sampling,
)
from llmos.syscalls.results import Fact
from llmos.syscalls.rights import ALL_CAPABILITIES, Quota
from llmos.syscalls.wire import CALL_TYPES, abi_schema, decode_call, encode, op_of, result_type

ROOT = Path(__file__).parent.parent
NAMES = [call.__name__ for call in CALL_TYPES]

MESSAGE = Message(
    role="assistant",
    parts=(
        TextPart(text="caf\u00e9 \U0001f600"),
        ImagePart(data=b"\x00\xff"),
        AudioPart(data=b""),
        FilePart(path="notes.md"),
    ),
    tool_requests=(ToolRequest(id="1", name="add", arguments={"a": [1, None, {"b": 2.5}]}),),
)
EXAMPLES = (calls.Example(messages=(user("q"), MESSAGE)),)

# One value of every call, with every kind of field away from its default somewhere.
INSTANCES: list[Call[Any]] = [
    calls.Generate(
        messages=(MESSAGE,),
        sampling=Sampling(temperature=0.5, top_k=3, seed=7, logit_bias={5: -1.0}, logprobs=2),
        stop=("\n",),
        constraint=JsonSchemaConstraint(json_schema={"type": "object"}),
        tools=("add",),
    ),
    calls.Generate(messages=(user("x"),), constraint=RegexConstraint(pattern="a+")),
    calls.Generate(messages=(user("x"),), constraint=ChoiceConstraint(choices=("a", "b"))),
    calls.Generate(messages=(user("x"),), constraint=GrammarConstraint(lark="start: /a/")),
    calls.Embed(texts=("a", "b"), model="minilm"),
    calls.Tokenize(text="a"),
    calls.ContextOpen(messages=(user("a"),), budget_tokens=64),
    calls.ContextAppend(context=1, messages=(user("a"),), kind="pinned"),
    calls.ContextFork(context=1),
    calls.ContextPin(context=1, segment=0, is_pinned=False),
    calls.ContextStat(context=1),
    calls.ContextSave(context=1, name="talk", namespace="n"),
    calls.ContextRestore(name="talk"),
    calls.ContextDiff(context=1, other=2),
    calls.CoreMemory(append="a", replace="b", by="c", is_urgent=True),
    calls.ContextClose(context=1),
    calls.Remember(notes=(calls.Note(text="a", metadata={"k": 1}, source="s", position=3),)),
    calls.Retrieve(query="a", k=2, mode="dense", namespaces=("n",), where={"k": 1}),
    calls.Remember(
        notes=(
            calls.Note(
                text="Ann lives in Oslo.",
                importance=0.9,
                valid_from=1.5,
                fact=Fact(subject="Ann", relation="lives in", object="Oslo", is_single=False),
                parent=3,
            ),
        ),
        merge_above=0.9,
        owner="ann",
    ),
    calls.Retrieve(
        query="a",
        where={"year": {"$gte": 2020}},
        kinds=("semantic",),
        at=2.5,
        recency_s=60,
        diversity=0.5,
        neighbours=1,
        with_parent=True,
    ),
    calls.Ingest(paths=("a", "b"), namespace="n", chunk_tokens=64, forget_gone=True),
    calls.Related(entity="Ann", hops=2, namespaces=("n",), at=1, limit=5),
    calls.Forget(ids=(1, 2)),
    calls.Forget(owner="ann", everything=True),
    calls.MemoryStat(),
    calls.ToolCall(name="add", arguments={"a": 1}, timeout_s=1.5),
    calls.ToolList(),
    calls.Finetune(data=EXAMPLES, name="v1"),
    calls.Finetune(data="rows.jsonl", name="v1", max_steps=5),
    calls.Evaluate(data=EXAMPLES, adapter="v1"),
    calls.Evaluate(
        data="rows.jsonl", model="v2", against=("v1",), objective="classify", report=True
    ),
    calls.Search(
        finetune=calls.Finetune(data="rows.jsonl", name="n"),
        space={"rank": Between(low=2, high=8), "freeze": OneOf(values=([], ["embeddings"]))},
        parallel=2,
    ),
    calls.ModelList(),
    calls.ModelPromote(
        name="v1",
        slot="people",
        checks=(calls.GateCheck(name="c", data="set.jsonl", metric="f1", max_regression=0.1),),
        force=True,
        reason="why",
    ),
    calls.ModelRollback(base="smollm2"),
    calls.ModelDelete(name="v1"),
    calls.ModelExport(name="v1", format="gguf", quantize="Q8_0", path="out.gguf"),
    calls.Classify(texts=("a", "b"), model="intents", task="intent", top_k=2),
    calls.Tag(texts=("a b", ("a", "b")), model="names"),
    calls.TraceConsent(namespace="ann", is_granted=False),
    calls.Outcome(pid=3, reward=0.5, verdict="pass", thumb="up", task="t", note="n"),
    calls.TraceData(namespaces=("ann",), objective="prefer", min_reward=None, since=1.5, limit=9),
    calls.Spawn(program="chat", args=(1, "a"), kwargs={"k": None}, capabilities=ALL_CAPABILITIES),
    calls.Fork(program="chat", contexts=(1,), quota=Quota(tokens_out=5, wall_s=2.5)),
    calls.SpawnGraph(nodes=(calls.GraphNode(name="a", program="p", after=()),), max_parallel=2),
    calls.Wait(pid=3, timeout_s=0),
    calls.Signal(pid=3, signal="TERM"),
    calls.Nice(nice=-20),
    calls.Sleep(seconds=0.5),
    calls.Exit(value={"a": [1]}),
    calls.Ps(),
    calls.Send(to=3, body={"a": 1}, on_full="refuse"),
    calls.Receive(sender=3, topic="t", timeout_s=1),
    calls.Publish(topic="t", body=[1]),
    calls.Subscribe(topic="t", is_on=False),
    calls.Open(path="a.txt", mode="a"),
    calls.Read(fd=3, max_bytes=1),
    calls.Write(data=bytes(range(256))),
    calls.Close(fd=3),
    calls.List(path="/", is_recursive=True),
    calls.Trace(),
    calls.Stat(),
]


def test_every_call_has_an_instance_here() -> None:
    assert {type(call) for call in INSTANCES} == set(CALL_TYPES)


@pytest.mark.parametrize("call", INSTANCES, ids=lambda call: type(call).__name__)
def test_a_call_survives_its_json_form(call: Call[Any]) -> None:
    assert decode_call(encode(call)) == call


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(_JSON)
def test_any_json_value_survives_in_a_call(body: Any) -> None:
    call = calls.Send(to=1, body=body)
    assert decode_call(encode(call)) == call


@given(st.binary(max_size=64))
def test_any_bytes_survive_in_a_call(data: bytes) -> None:
    call = calls.Write(data=data)
    assert decode_call(encode(call)) == call


@pytest.mark.parametrize("call_type", CALL_TYPES, ids=NAMES)
def test_a_call_refuses_fields_that_it_does_not_have(call_type: type[Call[Any]]) -> None:
    with pytest.raises(SyscallError, match="no_such_field"):
        call_type.model_validate({"op": op_of(call_type), "no_such_field": 1})


def test_an_unknown_call_is_refused_as_invalid() -> None:
    with pytest.raises(SyscallError) as refused:
        decode_call({"op": "format_disk"})
    assert refused.value.code == "invalid"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1: object()}])
def test_what_json_cannot_hold_is_refused_when_it_is_sent(value: Any) -> None:
    with pytest.raises(SyscallError) as refused:
        encode(calls.Send(to=1, body=value))
    assert refused.value.code == "invalid"


def test_wire_names_are_the_snake_case_of_the_types() -> None:
    for call_type in CALL_TYPES:
        snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", call_type.__name__).lower()
        assert op_of(call_type) == snake


def _nodes(path: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse((ROOT / path).read_text()))


def test_every_call_has_a_case_in_the_dispatch() -> None:
    cases = {
        ast.unparse(node.cls).split(".")[-1]
        for node in _nodes("kernel/dispatch.py")
        if isinstance(node, ast.MatchClass)
    }
    assert set(NAMES) - cases == set()


def test_the_dispatch_is_closed() -> None:
    called = {ast.unparse(n.func) for n in _nodes("kernel/dispatch.py") if isinstance(n, ast.Call)}
    assert "assert_never" in called


def test_every_call_is_issued_by_a_method_of_its_name_on_the_handle() -> None:
    parts = (*_nodes("agents/handle.py"), *_nodes("agents/learning.py"))
    handle = [one for part in parts if isinstance(part, ast.ClassDef) for one in part.body]
    issued = {
        method.name: {
            ast.unparse(node.func) for node in ast.walk(method) if isinstance(node, ast.Call)
        }
        for method in handle
        if isinstance(method, ast.AsyncFunctionDef)
    }
    missing = [
        call_type.__name__
        for call_type in CALL_TYPES
        if f"calls.{call_type.__name__}" not in issued.get(op_of(call_type), set())
    ]
    assert missing == []


def test_every_call_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "abi.md").read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    missing = [op_of(c) for c in CALL_TYPES if op_of(c) not in headings]
    missing += [name for c in CALL_TYPES if (name := result_type(c).__name__) not in headings]
    assert missing == []
    assert len(headings) == len({heading.lower() for heading in headings}), "anchors must be unique"


def test_every_link_of_the_reference_leads_somewhere() -> None:
    text = (ROOT / "docs" / "abi.md").read_text()
    anchors = {h.lower() for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) - anchors == set()


@pytest.mark.parametrize(("name", "render"), [("abi.md", abi_markdown), ("abi.json", abi_json)])
def test_the_reference_is_current(name: str, render: Any) -> None:
    current = (ROOT / "docs" / name).read_text() == render()
    assert current, f"docs/{name} is out of date; run `make docs`"


def test_the_schema_names_every_call_and_result() -> None:
    described = abi_schema()["calls"]
    assert set(described) == {op_of(call_type) for call_type in CALL_TYPES}
    for call_type in CALL_TYPES:
        assert described[op_of(call_type)]["result"]["title"] == result_type(call_type).__name__


def test_every_error_code_says_what_it_means() -> None:
    assert list(error_meanings()) == list(ERROR_CODES)
