"""Contexts under a budget: what stays, what leaves, and that nothing is lost track of."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.memory.context import Context
from llmos.memory.segments import DROPPED_RESULT
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
from llmos.syscalls.results import ContextInfo


def count(messages: Sequence[Message]) -> int:
    """Four tokens a message, one a word, three for the answer's opening."""
    assert messages, "a template cannot render nothing"
    return 3 + sum(4 + len(message.text.split()) for message in messages)


def words(number: int, word: str = "word") -> str:
    return " ".join([word] * number)


def context(budget_tokens: int = 100) -> Context:
    return Context(1, model="tiny", budget_tokens=budget_tokens, count=count)


def call(name: str) -> Message:
    request = ToolRequest(id=name, name="search", arguments={})
    return Message(role="assistant", parts=(TextPart(text="let me see"),), tool_requests=(request,))


def answer(name: str, text: str) -> Message:
    return tool_result(ToolRequest(id=name, name="search", arguments={}), text)


def states(info: ContextInfo) -> list[str]:
    return [segment.state for segment in info.segments]


def test_segments_know_their_kind_and_their_exact_tokens() -> None:
    ctx = context()
    ctx.append([system("be brief"), user("hello there you"), call("a"), answer("a", "ok")])
    info = ctx.info()
    assert [segment.kind for segment in info.segments] == [
        "system",
        "dialogue",
        "dialogue",
        "tool_result",
    ]
    assert [segment.tokens for segment in info.segments] == [9, 7, 7, 5]
    assert info.used_tokens == 28 == count(ctx.window())


def test_old_dialogue_is_paged_out_whole_exchanges_first_and_in_a_batch() -> None:
    ctx = context(100)
    ctx.append([system("be brief")])
    for turn in range(4):
        assert ctx.append([user(words(6, f"u{turn}")), assistant(words(6, f"a{turn}"))]) == []
    paged_out = ctx.append([user(words(6, "u4")), assistant(words(6, "a4"))])
    assert [segment.message.text.split()[0] for segment in paged_out] == ["u0", "a0", "u1", "a1"]
    assert ctx.info().used_tokens <= 75
    assert ctx.info().actions == ("paged out to the long-term store: segments 1-4",)
    assert ctx.window()[0] == system("be brief")


def test_the_prefix_then_stays_the_same_for_several_turns() -> None:
    ctx, changes = context(200), 0
    for turn in range(40):
        before = ctx.window()
        ctx.append([user(f"question {turn}"), assistant(words(3))])
        changes += ctx.window()[: len(before)] != before
    assert changes <= 40 // 3


def test_old_tool_results_are_dropped_before_any_dialogue_leaves() -> None:
    ctx = context(130)
    ctx.append([user("find it"), call("a"), answer("a", words(60)), assistant("found")])
    assert ctx.append([user(words(50))]) == []
    info = ctx.info()
    assert states(info) == ["in_window", "in_window", "dropped", "in_window", "in_window"]
    assert ctx.window()[2].text == DROPPED_RESULT
    assert ctx.window()[2].tool_request_id == "a"
    assert info.segments[2].preview.startswith("word word")
    assert info.actions == ("dropped tool results or recalled material: segments 2",)


def test_a_dropped_result_leaves_with_its_exchange_later() -> None:
    ctx = context(134)
    ctx.append([user("find it"), call("a"), answer("a", words(60)), assistant("found")])
    ctx.append([user(words(50)), assistant("yes")])
    paged_out = ctx.append([user(words(50))])
    assert [segment.index for segment in paged_out] == [0, 1, 3, 4, 5]
    assert states(ctx.info()) == [
        "paged_out",
        "paged_out",
        "dropped",
        "paged_out",
        "paged_out",
        "paged_out",
        "in_window",
    ]
    assert ctx.window() == [user(words(50))]


def test_a_long_tool_loop_on_one_question_gives_up_its_earlier_results() -> None:
    ctx = context(200)
    ctx.append([user("find it")])
    for step in "abcdef":
        assert ctx.append([call(step), answer(step, words(50, step))]) == []
    assert ctx.window()[0] == user("find it")
    assert ctx.window()[-1].text == words(50, "f")
    assert "dropped" in states(ctx.info())


def test_recalled_material_goes_with_the_question_it_was_recalled_for() -> None:
    ctx = context(112)
    ctx.append([user(words(30, "old"))], kind="recalled")
    ctx.append([user("first question"), assistant("first answer")])
    ctx.append([user(words(30, "new"))], kind="recalled")
    ctx.append([user(words(30, "question"))])
    assert states(ctx.info()) == ["dropped", "in_window", "in_window", "in_window", "in_window"]


def test_pinned_segments_stay_and_released_ones_go() -> None:
    ctx = context(60)
    ctx.append([user(words(10, "keep")), assistant("yes")])
    ctx.pin(0, True)
    ctx.append([user(words(20)), assistant(words(10))])
    ctx.append([user(words(15))])
    assert ctx.window()[0].text == words(10, "keep")
    assert ctx.info().segments[0].kind == "pinned"
    ctx.pin(0, False)
    ctx.append([assistant("yes"), user(words(30))])
    assert states(ctx.info())[0] == "paged_out"


def test_a_pinned_tool_result_keeps_its_request() -> None:
    ctx = context(78)
    ctx.append([user("find it"), call("a"), answer("a", words(20)), assistant("found")])
    ctx.pin(2, True)
    paged_out = ctx.append([user(words(30))])
    assert [segment.index for segment in paged_out] == [0, 3]
    assert ctx.window()[0].tool_requests[0].id == "a"


def test_what_cannot_fit_is_refused_with_the_counts_and_changes_nothing() -> None:
    ctx = context(60)
    ctx.append([system(words(10)), user("hello"), assistant("hi")])
    before = ctx.info()
    with pytest.raises(SyscallError) as caught:
        ctx.append([user(words(60))])
    assert caught.value.code == "context_overflow"
    assert caught.value.fields == {"prompt_tokens": 3 + 14 + 64, "limit_tokens": 60}
    assert ctx.info() == before


def test_room_for_the_answer_is_made_without_a_new_message() -> None:
    ctx = context(60)
    ctx.append([user(words(10)), assistant(words(10)), user("and now")])
    assert [segment.index for segment in ctx.append([], reserve_tokens=40)] == [0, 1]
    assert ctx.info().used_tokens == 9


def test_a_fork_goes_its_own_way() -> None:
    ctx = context()
    ctx.append([user("hello")])
    fork = ctx.fork(2)
    fork.append([assistant("hi")])
    fork.pin(0, True)
    assert len(ctx.window()) == 1
    assert ctx.info().segments[0].kind == "dialogue"
    assert (fork.info().context, fork.info().segments[0].kind) == (2, "pinned")


def test_pinning_what_is_not_there_says_why() -> None:
    ctx = context(60)
    ctx.append([user(words(10)), assistant(words(10))])
    ctx.append([user(words(30))])
    with pytest.raises(SyscallError, match="paged_out"):
        ctx.pin(0, True)
    with pytest.raises(SyscallError, match="no segment 9"):
        ctx.pin(9, True)


def test_a_system_segment_cannot_be_released() -> None:
    ctx = context()
    ctx.append([system("be brief")])
    with pytest.raises(SyscallError, match="always stays"):
        ctx.pin(0, False)


def test_a_counting_failure_passes_through_and_changes_nothing() -> None:
    def refuse(messages: Sequence[Message]) -> int:
        raise SyscallError("not_available", "the template takes no tool messages")

    ctx = Context(1, model="tiny", budget_tokens=100, count=refuse)
    with pytest.raises(SyscallError, match="template"):
        ctx.append([user("hello")])
    assert ctx.info().segments == ()


TURNS = st.one_of(
    st.integers(0, 60).map(lambda n: [user(words(n))]),
    st.integers(0, 60).map(lambda n: [assistant(words(n))]),
    st.tuples(st.uuids(), st.integers(0, 80)).map(
        lambda pair: [call(str(pair[0])), answer(str(pair[0]), words(pair[1]))]
    ),
    st.lists(st.integers(0, 20).map(lambda n: user(words(n))), min_size=1, max_size=6),
    st.just([system("rules")]),
)
KINDS = st.sampled_from([None, None, None, "pinned", "recalled", "dialogue", "summary"])
PINS = st.none() | st.tuples(st.integers(0, 30), st.booleans())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TURNS, KINDS, st.integers(0, 40), PINS), max_size=25))
def test_after_every_append_the_window_fits_and_every_segment_is_accounted_for(
    turns: list[tuple[list[Message], None, int, tuple[int, bool] | None]],
) -> None:
    ctx, appended, left = context(150), [], set[int]()
    for messages, kind, reserve_tokens, pin in turns:
        before = ctx.info()
        try:
            paged_out = ctx.append(messages, kind=kind, reserve_tokens=reserve_tokens)
        except SyscallError:
            assert ctx.info() == before
            continue
        appended += messages
        info = ctx.info()
        assert info.used_tokens == count(ctx.window()) <= 150 - reserve_tokens
        assert [segment.index for segment in info.segments] == list(range(len(appended)))
        for segment in info.segments:
            if segment.kind in ("system", "pinned"):
                assert segment.state == "in_window"
                assert appended[segment.index] in ctx.window()
        assert not left & {segment.index for segment in paged_out}
        left |= {segment.index for segment in paged_out}
        assert left == {s.index for s in info.segments if s.state == "paged_out"}
        assert all(segment.message == appended[segment.index] for segment in paged_out)
        assert ctx.window()[-1] == messages[-1]
        requests = {request.id for m in ctx.window() for request in m.tool_requests}
        results = {m.tool_request_id for m in ctx.window() if m.role == "tool"}
        assert results == requests
        assert (info.actions != before.actions) == (
            states(before) != states(info)[: len(before.segments)]
            or "paged_out" in states(info)[len(before.segments) :]
            or "dropped" in states(info)[len(before.segments) :]
        )
        if pin is not None and pin[0] < len(appended):
            try:
                ctx.pin(*pin)
            except SyscallError as refused:
                assert refused.code == "invalid"
