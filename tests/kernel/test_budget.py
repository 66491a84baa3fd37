"""Money and tokens of a remote model: never overdrawn, refused with a reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.kernel.budget import Budget, Prices, Reservation
from llmos.syscalls.errors import SyscallError

DEAR = Prices(price_in=1_000_000, price_out=2_000_000, money=100.0)  # 1 and 2 a token


def test_what_was_set_aside_is_replaced_by_what_was_used() -> None:
    budget = Budget("far", DEAR)
    held = budget.reserve(10, 20)
    assert held == Reservation(10, 20)
    budget.settle(held, prompt_tokens=10, new_tokens=5)
    assert budget.spent == pytest.approx(20.0)
    assert budget.spent_tokens == 15


def test_an_answer_is_cut_to_what_can_be_paid() -> None:
    budget = Budget("far", DEAR)
    assert budget.reserve(10, 1000).new_tokens == 45
    with pytest.raises(SyscallError) as refused:
        budget.reserve(1, 1)
    assert refused.value.code == "quota_exceeded"
    assert refused.value.fields["quota"] == "budget"
    assert refused.value.fields["device"] == "far"


def test_a_budget_of_tokens_counts_both_ways() -> None:
    budget = Budget("far", Prices(tokens=50))
    assert budget.reserve(30, 100).new_tokens == 20
    with pytest.raises(SyscallError, match="budget_tokens"):
        budget.reserve(1, 1)


def test_without_bounds_only_the_use_is_kept() -> None:
    budget = Budget("far", Prices(price_out=1.0))
    budget.settle(budget.reserve(10, 10**9), prompt_tokens=10, new_tokens=1_000_000)
    assert budget.spent == pytest.approx(1.0)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40), st.floats(0, 1)), max_size=40))
def test_no_order_of_calls_overdraws(calls: list[tuple[int, int, float]]) -> None:
    budget = Budget("far", Prices(1_000_000, 2_000_000, money=150.0, tokens=120))
    open_calls: list[tuple[Reservation, float]] = []
    for prompt, new, share in calls:
        try:
            open_calls.append((budget.reserve(prompt, new), share))
        except SyscallError as refused:
            assert refused.code == "quota_exceeded"
        if len(open_calls) > 3:
            held, used = open_calls.pop(0)
            budget.settle(
                held, prompt_tokens=held.prompt_tokens, new_tokens=int(held.new_tokens * used)
            )
    for held, used in open_calls:
        budget.settle(
            held, prompt_tokens=held.prompt_tokens, new_tokens=int(held.new_tokens * used)
        )
    assert budget.spent <= 150.0 + 1e-6
    assert budget.spent_tokens <= 120
