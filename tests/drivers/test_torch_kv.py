"""KV slabs: what is shared, what is copied, and that nobody's tokens change under them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.drivers.torch_kv import BLOCK_TOKENS, KvShape, KvStore

SHAPE = KvShape(layers=2, heads=1, dim=2)
TOKEN_BYTES = SHAPE.numbers * 4
WINDOW = 3 * BLOCK_TOKENS
SEQUENCES = 4


def store(window: int = WINDOW) -> KvStore:
    return KvStore(
        SHAPE, sequences=SEQUENCES, context_tokens=window, dtype=torch.float32, device="cpu"
    )


def append(kv: KvStore, sequence: int, values: list[int]) -> None:
    """Write one number a token, everywhere."""
    start = kv.length(sequence)
    for layer in kv.reserve(sequence, len(values)):
        for place, value in enumerate(values):
            layer[:, :, :, start + place] = value
    kv.advance(sequence, len(values))


def held(kv: KvStore, sequence: int) -> list[int]:
    """The number of each token; every layer, key and value must agree."""
    if not kv.length(sequence):
        return []
    state = kv.read(sequence)
    first = state[0, 0, 0, 0, :, 0]
    assert (state == first[:, None]).all()
    return [int(value) for value in first]


def test_memory_comes_by_blocks_and_goes_with_the_sequence() -> None:
    kv = store()
    append(kv, 0, [1])
    assert kv.bytes == BLOCK_TOKENS * TOKEN_BYTES
    append(kv, 0, list(range(BLOCK_TOKENS)))
    assert kv.bytes == 2 * BLOCK_TOKENS * TOKEN_BYTES
    kv.trim(0, 0)
    assert kv.bytes == 0


def test_a_slab_is_never_larger_than_the_window() -> None:
    kv = store(window=100)
    append(kv, 0, [1])
    assert kv.bytes == 100 * TOKEN_BYTES


def test_a_fork_takes_no_memory_until_it_writes() -> None:
    kv = store()
    append(kv, 0, [1, 2, 3])
    before = kv.bytes
    kv.fork(0, 1, 2)
    kv.fork(0, 2, 3)
    assert kv.bytes == before
    append(kv, 1, [9])
    assert kv.bytes == 2 * before
    assert held(kv, 0) == [1, 2, 3]
    assert held(kv, 1) == [1, 2, 9]
    assert held(kv, 2) == [1, 2, 3]


def test_the_source_of_a_fork_goes_on_in_place() -> None:
    kv = store()
    append(kv, 0, [1, 2, 3])
    before = kv.bytes
    kv.fork(0, 1, 3)
    append(kv, 0, [4])
    assert kv.bytes == before
    assert held(kv, 1) == [1, 2, 3]


def test_a_source_that_was_trimmed_into_its_fork_leaves_it_alone() -> None:
    kv = store()
    append(kv, 0, [1, 2, 3])
    kv.fork(0, 1, 3)
    kv.trim(0, 1)
    append(kv, 0, [7, 8])
    assert held(kv, 0) == [1, 7, 8]
    assert held(kv, 1) == [1, 2, 3]


def test_room_that_was_reserved_and_not_counted_is_not_held() -> None:
    kv = store()
    append(kv, 0, [1])
    kv.reserve(0, 5)
    assert kv.length(0) == 1
    append(kv, 0, [2])
    assert held(kv, 0) == [1, 2]


def test_a_state_of_another_size_is_refused() -> None:
    kv = store()
    append(kv, 0, [1, 2])
    state = memoryview(kv.read(0).numpy()).cast("B")
    with pytest.raises(ValueError, match="3 tokens"):
        kv.write(1, 3, state)
    assert kv.length(1) == 0


SEQUENCE = st.integers(0, SEQUENCES - 1)
SHARE = st.integers(0, 4)  # quarters of what a sequence holds
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), SEQUENCE, SEQUENCE, st.sampled_from([1, 2, BLOCK_TOKENS])),
        st.tuples(st.sampled_from(["fork", "trim", "copy"]), SEQUENCE, SEQUENCE, SHARE),
    ),
    min_size=4,
    max_size=24,
)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_whatever_happens_every_sequence_holds_its_own_tokens(
    steps: list[tuple[str, int, int, int]],
) -> None:
    kv = store()
    expected: list[list[int]] = [[] for _ in range(SEQUENCES)]
    written = 0
    for what, one, other, amount in steps:
        tokens = len(expected[one]) * amount // 4
        if what == "append" and len(expected[one]) + amount <= WINDOW:
            append(kv, one, list(range(written, written + amount)))
            expected[one] += range(written, written + amount)
            written += amount
        elif what == "trim":
            kv.trim(one, tokens)
            del expected[one][tokens:]
        elif what in ("fork", "copy") and one != other:
            kv.trim(other, 0)
            if what == "fork":
                kv.fork(one, other, tokens)
                expected[other] = expected[one][:tokens]
            else:
                kv.write(other, len(expected[one]), memoryview(kv.read(one).numpy()).cast("B"))
                expected[other] = list(expected[one])
        assert [kv.length(sequence) for sequence in range(SEQUENCES)] == list(map(len, expected))
        assert kv.bytes <= SEQUENCES * WINDOW * TOKEN_BYTES
    for sequence, values in enumerate(expected):
        assert held(kv, sequence) == values
    for sequence in range(SEQUENCES):
        kv.trim(sequence, 0)
    assert kv.bytes == 0
