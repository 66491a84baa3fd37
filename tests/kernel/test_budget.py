"""Money and tokens of a remote model: never overdrawn, refused with a reason."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.kernel.budget import Budget, Prices, Reservation
from llmos.memory.spending import SPENDING_FILE, Spending, Spent
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


# --- over several starts --------------------------------------------------------------------------


def test_what_was_spent_counts_at_the_next_start(tmp_path: Path) -> None:
    first = Budget("far", DEAR, Spending(tmp_path))
    first.settle(first.reserve(10, 40), prompt_tokens=10, new_tokens=30)
    first.reserve(1, 1)  # under way when the kernel ends
    second = Budget("far", DEAR, Spending(tmp_path))
    assert (second.spent_tokens, second.spent) == (40, pytest.approx(70.0))
    assert second.reserve(10, 1000).new_tokens == 10
    assert Budget("other", DEAR, Spending(tmp_path)).spent == 0


def test_two_kernels_of_one_home_add_to_one_sum(tmp_path: Path) -> None:
    one, two = (Budget("far", DEAR, Spending(tmp_path)) for _ in range(2))
    one.settle(one.reserve(10, 20), prompt_tokens=10, new_tokens=20)
    two.settle(two.reserve(10, 10), prompt_tokens=10, new_tokens=10)
    assert two.spent == pytest.approx(80.0)
    assert two.reserve(0, 1000).new_tokens == 10


def test_a_damaged_record_refuses_a_model_with_a_bound_and_stays_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / SPENDING_FILE
    for damage in (b"", b"rubbish" * 1000):
        path.write_bytes(damage)
        with pytest.raises(SyscallError, match="delete it to count from nothing") as refused:
            Budget("far", DEAR, Spending(tmp_path))
        assert (refused.value.code, refused.value.fields["path"]) == ("storage", str(path))
        with caplog.at_level(logging.WARNING):
            free = Budget("far", Prices(price_out=1.0), Spending(tmp_path))
        assert "cost of far is not kept" in caplog.text
        free.settle(free.reserve(1, 1), prompt_tokens=1, new_tokens=1)
        assert free.spent_tokens == 2
        assert path.read_bytes() == damage


def test_a_cost_that_the_disk_refuses_is_kept_with_the_next_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn(Spending):
        is_full = True

        def add(self, model: str, cost: Spent) -> Spent:
            if self.is_full:
                raise SyscallError("storage", "the disk is full")
            return super().add(model, cost)

    disk = Stubborn(tmp_path)
    budget = Budget("far", DEAR, disk)
    budget.settle(budget.reserve(1, 2), prompt_tokens=1, new_tokens=2)
    assert (budget.spent_tokens, "the disk is full" in caplog.text) == (3, True)
    disk.is_full = False
    budget.settle(budget.reserve(1, 3), prompt_tokens=1, new_tokens=3)
    assert Budget("far", DEAR, Spending(tmp_path)).spent_tokens == budget.spent_tokens == 7


@settings(max_examples=40)  # each makes a file on the disk
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40), st.booleans()), max_size=12))
def test_no_number_of_starts_overdraws(calls: list[tuple[int, int, bool]]) -> None:
    prices = Prices(1_000_000, 2_000_000, money=150.0, tokens=120)
    with tempfile.TemporaryDirectory() as home:
        spending = Spending(Path(home))
        budget = Budget("far", prices, spending)
        for prompt, new, is_restarted in calls:
            if is_restarted:
                spending.close()
                before, budget = budget, Budget("far", prices, spending)
                assert budget.spent_tokens == before.spent_tokens
                assert budget.spent == pytest.approx(before.spent)
            try:
                held = budget.reserve(prompt, new)
            except SyscallError as refused:
                assert refused.code == "quota_exceeded"
                continue
            budget.settle(held, prompt_tokens=prompt, new_tokens=held.new_tokens)
        spending.close()
        assert budget.spent <= 150.0 + 1e-6
        assert budget.spent_tokens <= 120
