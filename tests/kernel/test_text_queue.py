"""Which texts come next: each once, in passes that fit, nobody behind more than one pass."""

from __future__ import annotations

import asyncio
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from llmos.kernel.text_queue import (
    FEW_TEXTS,
    PASSES_PER_IDLE,
    Request,
    TextQueue,
    about_tokens,
)

Asked = Request[str, int]

REQUESTS = st.lists(
    st.tuples(st.lists(st.integers(1, 900), min_size=1, max_size=40), st.booleans()), max_size=8
)


def request(lengths: list[int], *, is_idle: bool = False) -> Asked:
    texts = ["x" * length for length in lengths]
    return Request(
        texts=texts,
        sizes=[min(about_tokens(text), 200) for text in texts],
        answers=[None] * len(lengths),
        done=asyncio.get_running_loop().create_future(),
        is_idle=is_idle,
        missing=deque(range(len(lengths))),
    )


@given(REQUESTS)
def test_every_text_is_given_out_once_in_passes_that_fit(
    asked: list[tuple[list[int], bool]],
) -> None:
    async def scenario() -> None:
        queue = TextQueue[Asked](pass_tokens=300)
        requests = [request(lengths, is_idle=is_idle) for lengths, is_idle in asked]
        for one in requests:
            queue.push(one)
        assert set(map(id, queue.waiting())) == set(map(id, requests))
        given_out: list[tuple[int, int]] = []
        while items := queue.next_pass():
            is_few = all(len(item.request.texts) <= FEW_TEXTS for item in items)
            longest = max(item.tokens for item in items)
            assert is_few or len(items) == 1 or len(items) * longest <= 300
            given_out += [(id(item.request), item.place) for item in items]
        wanted = [(id(one), place) for one in requests for place in range(len(one.texts))]
        assert sorted(given_out) == sorted(wanted)
        assert not queue.waiting()

    asyncio.run(scenario())


def test_few_and_many_take_turns_and_idle_comes_last() -> None:
    async def scenario() -> None:
        queue = TextQueue[Asked](pass_tokens=300)
        many, idle = request([800] * 9), request([800], is_idle=True)
        queue.push(idle)
        queue.push(many)
        order: list[str] = []
        queue.push(request([10]))
        while items := queue.next_pass():
            owner = items[0].request
            order.append("many" if owner is many else "idle" if owner is idle else "few")
            if order.count("few") < 3 and order[-1] == "few":
                queue.push(request([10]))
        assert order[:6] == ["few", "many", "few", "many", "few", "many"]
        assert order[-1] == "idle"

    asyncio.run(scenario())


def test_idle_work_is_not_put_off_for_ever() -> None:
    async def scenario() -> None:
        queue = TextQueue[Asked](pass_tokens=300)
        idle = request([800] * 9, is_idle=True)
        queue.push(idle)
        for _ in range(2 * PASSES_PER_IDLE):
            queue.push(request([10]))
            (item, *_) = queue.next_pass()
            if item.request is idle:
                break
        else:
            raise AssertionError("idle work was never given out")

    asyncio.run(scenario())


def test_requests_whose_caller_is_gone_are_passed_over() -> None:
    async def scenario() -> None:
        queue = TextQueue[Asked](pass_tokens=300)
        gone, stays = request([800] * 9), request([10] * 9)
        queue.push(gone)
        queue.push(stays)
        gone.done.cancel()
        places = [item.place for items in iter(queue.next_pass, []) for item in items]
        assert sorted(places) == list(range(9))

    asyncio.run(scenario())
