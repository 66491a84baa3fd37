"""Charges, reservations and quotas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.kernel.accounts import Account
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.rights import Quota


def test_a_refused_charge_changes_nothing() -> None:
    parent = Account(1, Quota(tokens_in=10), None)
    child = Account(2, Quota(tokens_in=100), parent)
    child.charge("tokens_in", 8)
    with pytest.raises(SyscallError, match="its ancestor 1 is 10 tokens: 8 used") as refusal:
        child.charge("tokens_in", 3)
    assert refusal.value.fields == {
        "quota": "tokens_in",
        "limit": 10,
        "used": 8,
        "needed": 3,
        "pid": 1,
    }
    assert (child.held, parent.held) == ({"tokens_in": 8}, {"tokens_in": 8})


def test_a_reservation_takes_what_is_left_and_refuses_when_nothing_is() -> None:
    account = Account(1, Quota(tokens_out=10), None)
    assert account.reserve_up_to("tokens_out", 8) == 8
    assert account.reserve_up_to("tokens_out", 8) == 2
    with pytest.raises(SyscallError, match="quota_exceeded"):
        account.reserve_up_to("tokens_out", 1)
    account.refund("tokens_out", 5)
    assert account.reserve_up_to("tokens_out", 8) == 5


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), max_size=60))
def test_a_parent_holds_what_it_and_its_descendants_hold(steps: list[tuple[int, int]]) -> None:
    root = Account(1, Quota(tokens_in=200), None)
    accounts = [root, Account(2, Quota(tokens_in=120), root), Account(3, Quota(), root)]
    own = [0, 0, 0]
    for index, amount in steps:
        try:
            accounts[index].charge("tokens_in", amount)
        except SyscallError:
            continue
        own[index] += amount
    assert root.held.get("tokens_in", 0) == sum(own) <= 200
    assert accounts[1].held.get("tokens_in", 0) == own[1] <= 120
