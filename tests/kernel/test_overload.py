"""When to come back to a full queue, and what is said of a deadline."""

from __future__ import annotations

from llmos.kernel.overload import Ends, overdue, queue_full


def test_a_device_of_which_nothing_is_known_is_asked_again_after_a_second() -> None:
    assert Ends().retry_after_s(1) == 1.0
    assert Ends().retry_after_s(100) == 5.0


def test_who_is_refused_comes_back_when_a_twentieth_of_the_queue_has_ended() -> None:
    ends = Ends()
    for now_s in (10.0, 12.0, 14.0):
        ends.count(now_s, is_last=False)
    assert ends.retry_after_s(10) == 2.0
    assert ends.retry_after_s(200) == 20.0


def test_an_idle_time_is_not_taken_for_a_slow_device() -> None:
    ends = Ends()
    ends.count(0.0, is_last=False)
    ends.count(2.0, is_last=True)
    ends.count(1_000.0, is_last=False)
    ends.count(1_002.0, is_last=False)
    assert ends.retry_after_s(1) == 2.0


def test_the_hint_follows_a_device_that_slows() -> None:
    ends, now_s = Ends(), 0.0
    for _ in range(200):
        now_s += 0.001
        ends.count(now_s, is_last=False)
    assert ends.retry_after_s(1) == 0.1  # never at once
    for _ in range(200):
        now_s += 4.0
        ends.count(now_s, is_last=False)
    assert ends.retry_after_s(1) == 4.0


def test_both_errors_name_the_device_and_what_to_do() -> None:
    full = queue_full("far", waiting=40, limit=40, ends=Ends())
    assert (full.code, full.is_retryable) == ("busy", True)
    assert full.fields == {"device": "far", "limit": 40, "retry_after_s": 2.0}
    assert "retry in 2.0 s" in full.message
    late = overdue("far", waited_s=3.25, tokens=7)
    assert (late.code, late.is_retryable) == ("timeout", True)
    assert late.fields == {"device": "far", "tokens": 7}
    assert "allow more time" in late.message
