"""What a sequence carries between steps."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from llmos.drivers.constraint import ConstraintCompiler
from llmos.drivers.contract import DeviceError, Feed, SequenceError
from llmos.drivers.decoding import Decoding, masks
from llmos.syscalls.options import GREEDY, RegexConstraint

PIECES = [*(bytes([byte]) for byte in range(256)), b"<end>"]
END = frozenset({256})


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return ConstraintCompiler(PIECES, special=END, end=END, tokenize=lambda text: [*text.encode()])


def decoding(compiler: ConstraintCompiler, pattern: str, generated: str = "") -> Decoding:
    return Decoding(
        sampling=GREEDY,
        vocabulary=len(PIECES),
        end_tokens=END,
        matcher=compiler.compile(RegexConstraint(pattern=pattern)),
        generated=[*generated.encode()],
    )


FLAT = np.zeros(len(PIECES), np.float32)


def test_a_complete_constraint_ends_by_an_end_token(compiler: ConstraintCompiler) -> None:
    one = decoding(compiler, "ab")
    chosen = [one.choose(7, FLAT, one.mask()) for _ in range(3)]
    assert [(c.sequence, c.token, c.is_end) for c in chosen] == [
        (7, ord("a"), False),
        (7, ord("b"), False),
        (7, 256, True),
    ]


def test_a_constraint_goes_on_after_what_was_generated(compiler: ConstraintCompiler) -> None:
    one = decoding(compiler, "abcd", generated="abc")
    assert one.choose(0, FLAT, one.mask()).token == ord("d")


def test_generated_tokens_that_the_constraint_forbids_are_refused(
    compiler: ConstraintCompiler,
) -> None:
    with pytest.raises(DeviceError, match="cannot go on"):
        decoding(compiler, "abcd", generated="ax")


def test_masks_are_made_for_those_who_sample(compiler: ConstraintCompiler) -> None:
    free = Decoding(sampling=GREEDY, vocabulary=len(PIECES), end_tokens=END)
    bound = decoding(compiler, "a")
    feeds = [Feed(0, [1], True), Feed(1, [1], True), Feed(2, [1], False)]
    found = masks(feeds, {0: free, 1: bound, 2: decoding(compiler, "b")})
    assert found.keys() == {0, 1}
    assert found[0] is None
    mask = found[1]
    assert mask is not None
    assert mask.nonzero()[0].tolist() == [ord("a")]


def test_a_constraint_that_cannot_go_on_names_its_sequence(compiler: ConstraintCompiler) -> None:
    bound = decoding(compiler, "a")
    bound.choose(3, FLAT, np.arange(len(PIECES)) == ord("x"))
    with pytest.raises(SequenceError, match="cannot go on") as caught:
        masks([Feed(3, [1], True)], {3: bound})
    assert caught.value.sequence == 3
    assert not caught.value.is_fatal
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.sequence) == (str(caught.value), 3)
