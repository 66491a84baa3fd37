"""Policies over the same segments: what leaves, as what, and at what price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.memory.context import Context, Recollection
from llmos.memory.context_policy import POLICIES, SUMMARY_TOKENS
from llmos.memory.context_state import ContextState
from llmos.memory.paging import Paging
from llmos.memory.segments import DROPPED_RESULT, conversation
from llmos.syscalls.content import Message, TextPart, ToolRequest, assistant, system, user
from llmos.syscalls.content import tool_result as result_of
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ContextPolicy


def count(messages: Sequence[Message]) -> int:
    """Four tokens a message, one a word, three for the answer's opening."""
    return 3 + sum(4 + len(message.text.split()) for message in messages)


def words(number: int, word: str = "word") -> str:
    return " ".join([word] * number)


def context(policy: ContextPolicy = "default", budget_tokens: int = 100) -> Context:
    return Context(1, model="tiny", budget_tokens=budget_tokens, count=count, policy=policy)


def request(name: str) -> list[Message]:
    asked = ToolRequest(id=name, name="search", arguments={})
    call = Message(role="assistant", parts=(TextPart(text="wait"),), tool_requests=(asked,))
    return [call, result_of(asked, words(60, name))]


def states(ctx: Context) -> list[str]:
    return [segment.state for segment in ctx.info().segments]


def exchange(number: int) -> list[Message]:
    return [user(words(16, f"u{number}")), assistant(words(16, f"a{number}"))]


def filled(policy: ContextPolicy, exchanges: int = 4, budget_tokens: int = 150) -> Context:
    ctx = context(policy, budget_tokens)
    ctx.append([system("be brief")])
    for number in range(exchanges):
        ctx.append(exchange(number))
    return ctx


@pytest.mark.parametrize(
    ("policy", "state"),
    [("window", "dropped"), ("page_out", "paged_out"), ("default", "paged_out")],
)
def test_the_oldest_exchanges_leave_as_the_policy_says(policy: ContextPolicy, state: str) -> None:
    ctx = filled(policy)
    assert states(ctx)[:6] == ["in_window", *[state] * 4, "in_window"]
    first = ctx.info().segments[1]
    assert first.reason == "oldest exchange; 169 tokens for a room of 150"


def test_drop_results_keeps_all_that_was_said_and_refuses_when_that_is_too_much() -> None:
    ctx = context("drop_results", 150)
    ctx.append([user("find it"), *request("a"), assistant("found"), user(words(20))])
    ctx.append([*request("b")])
    assert states(ctx).count("dropped") == 1
    assert ctx.window()[2].text == DROPPED_RESULT
    with pytest.raises(SyscallError, match="must stay"):
        ctx.append([user(words(90))])


def test_a_summary_takes_the_place_of_what_left_and_of_the_summary_before() -> None:
    ctx = filled("summary", exchanges=8, budget_tokens=SUMMARY_TOKENS + 120)
    left = [s for s in ctx.info().segments if s.state == "summarised"]
    assert [segment.index for segment in left] == list(range(1, 13))
    ctx.summarise("first things")
    assert ctx.summary() == "first things"
    assert [message.role for message in ctx.window()[:2]] == ["system", "user"]
    again = list[str]()
    for number in range(8, 16):
        gone = ctx.append(exchange(number))
        if gone:
            again += [segment.message.text for segment in gone if segment.own_kind == "summary"]
            ctx.summarise(f"summary {number}")
    assert again[0].endswith("first things")
    assert sum("summarised:" in message.text for message in ctx.window()) == 1
    assert ctx.info().used_tokens == count(ctx.window())
    indices = sorted(segment.index for segment in ctx.info().segments)
    assert indices == list(range(len(indices)))


def recall(ctx: Context, note: int, text: str) -> tuple[int, ...]:
    return ctx.recall([Recollection(note, text, (0.0, note))], room_tokens=60)


def test_recalled_material_of_earlier_turns_goes_in_one_batch_where_that_is_cheap() -> None:
    ctx = context("default", 190)
    ctx.append([system("be brief"), *exchange(0)])
    for number in range(1, 3):
        ctx.append([user(words(3, f"q{number}"))])
        assert recall(ctx, number, words(40, f"r{number}")) == (number,)
        ctx.append([assistant(words(3, f"a{number}"))])
    prefix = ctx.window()[:3]
    assert ctx.append([user(words(30, "new"))]) == []
    assert states(ctx).count("dropped") == 2
    assert "paged_out" not in states(ctx)
    assert ctx.window()[:3] == prefix
    assert ctx.info().history[-1].recomputed_tokens < 40


def test_where_late_drops_are_dear_the_oldest_exchanges_leave_with_them() -> None:
    ctx = context("default", 150)
    ctx.append([system("be brief"), user("first")])
    recall(ctx, 1, words(10))
    ctx.append([assistant("yes")])
    for number in range(3):
        ctx.append(exchange(number))
    assert "paged_out" in states(ctx)
    recalled = next(s for s in ctx.info().segments if s.kind == "recalled")
    assert (recalled.state, recalled.notes) == ("dropped", (1,))


def test_what_is_recalled_is_said_with_the_question_and_shown_once() -> None:
    ctx = context("default", 300)
    ctx.append([system("be brief"), *exchange(0), user("what then?")])
    before = ctx.window()
    assert recall(ctx, 7, "the key is blue") == (7,)
    assert ctx.window()[:-1] == before[:-1]
    assert ctx.window()[-1].text == "From earlier:\n- the key is blue\n\nwhat then?"
    assert ctx.shown_notes() == {7}
    assert ctx.info().used_tokens == count(ctx.window())
    *_, recalled, question = ctx.info().segments
    assert (recalled.kind, question.preview) == ("recalled", "what then?")


def test_recalled_notes_are_as_many_as_fit_the_best_first_in_order_of_time() -> None:
    ctx = context("default", 300)
    ctx.append([user("what then?")])
    found = [
        Recollection(3, words(10, "late"), (3.0, 3)),
        Recollection(1, words(10, "early"), (1.0, 1)),
        Recollection(2, words(10, "least"), (2.0, 2)),
    ]
    assert ctx.recall(found, room_tokens=30) == (3, 1)
    text = ctx.window()[0].text
    assert text.index("early") < text.index("late")
    assert ctx.recall([], room_tokens=30) == ()
    assert ctx.append([user("x")]) == []
    assert ctx.recall([Recollection(9, words(99), (9.0, 9))], room_tokens=30) == ()


def test_core_memory_stands_with_the_rules_and_grows_only_as_far_as_there_is_room() -> None:
    ctx = context("default", 60)
    ctx.append([system("be brief"), *exchange(0)])
    ctx.set_core("the user is Anna", is_urgent=True)
    assert ctx.window()[0].text.startswith("be brief\n\n")
    assert ctx.window()[0].text.endswith("the user is Anna")
    assert states(ctx)[0] == "in_window"
    before = ctx.info()
    with pytest.raises(SyscallError, match="must stay"):
        ctx.set_core(words(60), is_urgent=True)
    assert ctx.info() == before
    assert ctx.state.core == "the user is Anna"
    with pytest.raises(SyscallError, match="always stays"):
        ctx.pin(next(s.index for s in before.segments if s.kind == "core"), False)


def test_an_edit_of_core_memory_waits_for_the_next_loss_of_the_prefix() -> None:
    ctx = context("default", 150)
    ctx.append([system("be brief")])
    ctx.set_core("old", is_urgent=True)
    ctx.append(exchange(0))
    ctx.set_core("new", is_urgent=False)
    assert ctx.window()[0].text.endswith("old")
    assert ctx.append(exchange(1)) == []
    assert ctx.window()[0].text.endswith("old")
    for number in range(2, 5):
        ctx.append(exchange(number))
    assert ctx.window()[0].text.endswith("new")
    assert ctx.info().used_tokens == count(ctx.window())


def test_prices_are_the_tokens_behind_an_edit() -> None:
    ctx = filled("default", exchanges=2)
    paging = Paging(dict(ctx.state.window), ctx.state.used_tokens, count)
    sizes = [segment.tokens for segment in paging.window.values()]
    assert [paging.behind_tokens(index) for index in paging.window] == [
        sum(sizes[place + 1 :]) for place in range(len(sizes))
    ]


def test_every_policy_has_a_class() -> None:
    assert set(POLICIES) == set(get_args(ContextPolicy))


def test_a_state_survives_being_written_down() -> None:
    from pydantic import TypeAdapter

    ctx = filled("default")
    ctx.append([user("what then?"), *request("a")])
    adapter = TypeAdapter(ContextState)
    assert adapter.validate_json(adapter.dump_json(ctx.state)) == ctx.state


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["talk", "tool", "recall", "core", "urgent", "summarise"]),
        st.integers(0, 40),
    ),
    max_size=30,
)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(POLICIES)), STEPS)
def test_whatever_happens_counts_are_exact_and_every_segment_is_somewhere(
    policy: ContextPolicy, steps: list[tuple[str, int]]
) -> None:
    ctx = context(policy, SUMMARY_TOKENS + 160)
    ctx.append([system("rules")])
    ctx.set_core("", is_urgent=True)
    for number, (step, size) in enumerate(steps):
        before = ctx.info()
        try:
            match step:
                case "talk":
                    left = ctx.append([user(words(size)), assistant(words(size))])
                    if any(one.state == "summarised" for one in left):
                        ctx.summarise(words(20, "sum"))
                case "tool":
                    ctx.append([user("find it"), *request(f"t{number}"), assistant("found")])
                case "recall":
                    ctx.append([user(words(size))])
                    room = min(40, ctx.free_tokens)
                    shown = ctx.recall(
                        [Recollection(number, words(size), (0.0, number))], room_tokens=room
                    )
                    assert set(shown) <= ctx.shown_notes()
                case "core" | "urgent":
                    ctx.set_core(words(size, "core"), is_urgent=step == "urgent")
                case _:
                    assert ctx.fork(2).info().segments == before.segments
        except SyscallError:
            assert ctx.info() == before
        info = ctx.info()
        assert info.used_tokens == count(ctx.window())
        assert info.used_tokens <= info.budget_tokens
        assert ctx.window() == conversation(ctx.state.window.values())
        assert sorted(one.index for one in info.segments) == list(range(ctx.state.appended))
        shown_now = [one for one in info.segments if one.index in ctx.state.window]
        assert [one.index for one in shown_now] == list(ctx.state.window)
