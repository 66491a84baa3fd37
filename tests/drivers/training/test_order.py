from __future__ import annotations

from collections import Counter
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from llmos.drivers.training.order import Order, PieceSize, micro_batches, planned_steps
from llmos.drivers.training.task import Item


def items(count: int, task: str = "") -> list[Item]:
    return [Item((1,) * (number % 7 + 1), None, str(number), task) for number in range(count)]


def test_every_epoch_holds_every_item_once_in_an_order_of_its_own() -> None:
    order = Order(items(10), batch_size=4, seed=0)
    batches = [order.batch(step) for step in range(1, 7)]
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    first, second = (list(chain(*epoch)) for epoch in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


@given(count=st.integers(1, 30), size=st.integers(1, 7), step=st.integers(1, 40))
def test_a_batch_depends_on_its_step_and_not_on_what_was_asked_before(
    count: int, size: int, step: int
) -> None:
    walked = Order(items(count), batch_size=size, seed=3)
    for earlier in range(1, step):
        walked.batch(earlier)
    assert walked.batch(step) == Order(items(count), batch_size=size, seed=3).batch(step)


@given(
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 3),
)
def test_a_mixture_gives_each_task_its_share_and_repeats_no_item_early(
    sizes: tuple[int, int], share: float, seed: int
) -> None:
    mixed = items(sizes[0], "a") + items(sizes[1], "b")
    order = Order(mixed, batch_size=3, seed=seed, shares={"a": share, "b": 1 - share})
    drawn: Counter[int] = Counter()
    for step in range(1, 3 * order.batches_per_epoch + 1):
        drawn.update(order.batch(step))
    of_a = [drawn[place] for place in range(sizes[0])]
    of_b = [drawn[place] for place in range(sizes[0], sum(sizes))]
    assert max(of_a) - min(of_a) <= 1
    assert max(of_b) - min(of_b) <= 1
    assert sum(of_a) == 3 * max(1, round(share * sum(sizes)))


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    rows=st.integers(1, 8),
    most=st.integers(1, 64),
    enough=st.integers(0, 64),
    is_packed=st.booleans(),
)
def test_micro_batches_lose_nothing_and_stay_within_rows_and_tokens(
    lengths: list[int], rows: int, most: int, enough: int, is_packed: bool
) -> None:
    batch = [Item((0,) * length, None, str(n)) for n, length in enumerate(lengths)]
    pieces = micro_batches(batch, rows=rows, size=PieceSize(most, enough), is_packed=is_packed)
    assert sorted(item.origin for piece in pieces for item in piece) == sorted(
        item.origin for item in batch
    )
    for piece in pieces:
        found = [len(item.tokens) for item in piece]
        computed = sum(found) if is_packed else max(found) * len(found)
        assert len(piece) == 1 or (len(piece) <= rows and computed <= most)


def test_a_row_that_is_much_longer_begins_a_piece_unless_the_one_before_is_too_small() -> None:
    batch = [Item((0,) * length, None, str(length)) for length in (40, 10, 11, 12, 13)]
    few = micro_batches(batch, rows=9, size=PieceSize(500, 200), is_packed=False)
    assert [len(piece) for piece in few] == [5]
    many = micro_batches(batch, rows=9, size=PieceSize(500, 20), is_packed=False)
    assert [[len(item.tokens) for item in piece] for piece in many] == [[10, 11, 12], [13, 40]]


def test_steps_are_the_epochs_batches_rounded_up_and_capped() -> None:
    assert planned_steps(3, epochs=2, max_steps=None) == 6
    assert planned_steps(3, epochs=0.5, max_steps=None) == 2
    assert planned_steps(3, epochs=2, max_steps=5) == 5
    assert planned_steps(3, epochs=2, max_steps=50) == 6
