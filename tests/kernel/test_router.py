"""Which device a call goes to: pure predictions from what was measured."""

from __future__ import annotations

import pytest

from llmos.kernel.router import Ask, Line, Router, Site, Used

FAST, SLOW = Site("fast", 16, "one"), Site("slow", 16, "two")
SITES = (FAST, SLOW)


def serve(
    router: Router,
    site: Site,
    *,
    prefill_s: float,
    decode_s: float,
    program: int = 0,
    sites: tuple[Site, ...] = SITES,
) -> None:
    """One generation of 100 + 11 tokens at the given seconds a token, alone."""
    router.began(site, "key", Ask(program, 100, 50), sites)
    router.ended(site.name, "key", Used(100, 0, 11, 100 * prefill_s, 10 * decode_s))


def measured(*, fast_s: float = 0.01, slow_s: float = 0.02) -> Router:
    router = Router()
    for _ in range(3):
        serve(router, FAST, prefill_s=fast_s / 10, decode_s=fast_s)
        serve(router, SLOW, prefill_s=slow_s / 10, decode_s=slow_s)
    return router


def test_without_knowledge_the_order_is_as_given() -> None:
    assert Router().order([SLOW, FAST], Ask(1, 10, 10)) == ["slow", "fast"]


def test_the_faster_device_is_first() -> None:
    assert measured().order([SLOW, FAST], Ask(1, 100, 50)) == ["fast", "slow"]


def test_a_queue_sends_a_call_to_the_slower_device() -> None:
    router = measured()
    for key in range(40):
        router.began(FAST, key, Ask(key, 100, 50), SITES)
    assert router.order(SITES, Ask(1, 100, 50))[0] == "slow"
    for key in range(40):
        router.ended("fast", key, None)
    assert router.order(SITES, Ask(1, 100, 50))[0] == "fast"


def test_a_prefix_that_is_there_outweighs_a_little_speed() -> None:
    router = measured(fast_s=0.019)
    serve(router, SLOW, prefill_s=0.002, decode_s=0.02, program=7)
    assert router.order(SITES, Ask(7, 2000, 5))[0] == "slow"
    assert router.order(SITES, Ask(8, 2000, 5))[0] == "fast"


def test_a_closed_device_costs_its_opening() -> None:
    router = measured()
    closed = FAST._replace(opening_s=20.0)
    assert router.order([closed, SLOW], Ask(1, 100, 50))[0] == "slow"
    assert router.order([closed, SLOW], Ask(1, 100_000, 50))[0] == "fast"


def test_a_device_that_was_never_used_gets_its_chance_under_load() -> None:
    router = Router()
    serve(router, FAST, prefill_s=0.001, decode_s=0.01)
    router.began(FAST, "busy", Ask(1, 100, 50), SITES)
    assert router.order(SITES, Ask(2, 100, 50))[0] == "slow"


def test_devices_of_one_processor_slow_each_other() -> None:
    near, far = SLOW._replace(processor="one"), Site("far", 16, "far")
    sites = (FAST, near, far)
    router = Router()
    for _ in range(3):
        serve(router, near, prefill_s=0.001, decode_s=0.010, sites=sites)
        serve(router, far, prefill_s=0.0015, decode_s=0.015, sites=sites)
    assert router.order([near, far], Ask(1, 100, 50))[0] == "slow"
    router.began(FAST, "busy", Ask(2, 100, 50), sites)
    alone_s = router.finish_s(near, Ask(1, 100, 50), [near])
    assert router.finish_s(near, Ask(1, 100, 50), sites) == pytest.approx(2 * alone_s)


def test_what_failed_tells_nothing_of_speed() -> None:
    router = measured()
    before = router.finish_s(FAST, Ask(1, 100, 50), SITES)
    router.began(FAST, "failed", Ask(1, 100, 50), SITES)
    router.ended("fast", "failed", None)
    router.ended("fast", "never began", Used(1, 0, 1, 1.0, 1.0))
    assert router.finish_s(FAST, Ask(1, 100, 50), SITES) == pytest.approx(before)


def test_programs_are_not_remembered_for_ever() -> None:
    router = Router()
    for program in range(10_000):
        serve(router, FAST, prefill_s=0.001, decode_s=0.01, program=program)
    assert len(router._last) <= 4096


def test_a_line_finds_its_slope_and_guesses_it_before() -> None:
    line = Line()
    assert not line.is_known
    line.observe(1, 10.0)
    assert line.at(1) == pytest.approx(10.0)
    assert line.at(2) == pytest.approx(15.0)
    for _ in range(50):
        for load in (1, 8, 16):
            line.observe(load, 10.0 + 2.0 * load)
    assert line.at(4) == pytest.approx(18.0, rel=0.1)
    assert line.at(0) > 0


def test_a_line_follows_what_changes() -> None:
    line = Line()
    for seconds in (10.0, 1.0):
        for _ in range(200):
            line.observe(2, seconds)
    assert line.at(2) == pytest.approx(1.0, rel=0.05)
