"""A session comes back to its slot."""

from __future__ import annotations

from llmos.drivers.remote_slots import Slots


def test_a_session_gets_its_slot_again() -> None:
    slots = Slots(3)
    first = slots.take("a")
    other = slots.take("b")
    assert first is not None and other is not None and first != other
    slots.give_back(other)
    slots.give_back(first)
    assert slots.take("a") == first
    assert slots.take("b") == other


def test_a_new_session_gets_the_slot_that_was_free_the_longest() -> None:
    slots = Slots(2)
    old, new = slots.take("a"), slots.take("b")
    assert old is not None and new is not None
    slots.give_back(old)
    slots.give_back(new)
    assert slots.take("c") == old
    assert slots.take("b") == new


def test_without_a_free_slot_the_server_chooses() -> None:
    slots = Slots(1)
    assert slots.take("a") == 0
    assert slots.take("b") is None
    assert Slots(0).take("a") is None


def test_calls_without_a_session_share_nothing() -> None:
    slots = Slots(2)
    first = slots.take("")
    assert first is not None
    slots.give_back(first)
    assert slots.take("") != first
