"""What a sequence carries between steps."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from llmos.drivers.constraint import ConstraintCompiler
from llmos.drivers.contract import DeviceError, Feed, SequenceError
from llmos.drivers.decoding import Decoding, Run, masks, rows_of, sample
from llmos.drivers.sampling import Rows
from llmos.syscalls.options import GREEDY, RegexConstraint, Sampling

PIECES = [*(bytes([byte]) for byte in range(256)), b"<end>"]
END = frozenset({256})


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return ConstraintCompiler(PIECES, special=END, end=END, tokenize=lambda text: [*text.encode()])


def decoding(
    compiler: ConstraintCompiler, pattern: str, generated: str = "", sampling: Sampling = GREEDY
) -> Decoding:
    return Decoding(
        sampling=sampling,
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


# --- forced tokens --------------------------------------------------------------------------------


def test_what_the_constraint_forces_comes_with_the_token_before_it(
    compiler: ConstraintCompiler,
) -> None:
    one = decoding(compiler, "[ab]cde[fg]h")
    first = one.choose_on(0, FLAT, one.mask())
    assert (first.token, first.forced, first.is_end) == (ord("a"), (*b"cde",), False)
    last = one.choose_on(0, FLAT, one.mask())
    # Nothing can follow: the end comes with it too.
    assert (last.token, last.forced, last.is_end) == (ord("f"), (ord("h"), 256), False)


def test_a_token_that_makes_the_constraint_complete_forces_the_end(
    compiler: ConstraintCompiler,
) -> None:
    one = decoding(compiler, "[ab]")
    assert one.choose_on(0, FLAT, one.mask()).forced == (256,)


def test_what_may_end_or_go_on_forces_nothing(compiler: ConstraintCompiler) -> None:
    one = decoding(compiler, "[ab]+")
    assert one.choose_on(0, FLAT, one.mask()).forced == ()


def test_nothing_is_forced_where_logprobs_are_asked_for(compiler: ConstraintCompiler) -> None:
    one = decoding(compiler, "abc", sampling=Sampling(logprobs=1))
    chosen = [one.choose_on(0, FLAT, one.mask()) for _ in range(4)]
    assert [c.token for c in chosen] == [*b"abc", 256]
    assert all(c.forced == () and c.logprob is not None for c in chosen)


def test_forced_tokens_move_the_draws_as_sampled_ones_do(compiler: ConstraintCompiler) -> None:
    pattern = "[ab]{4}cccc[a-z]{9}"

    def text(sampling: Sampling) -> list[int]:
        one, out = decoding(compiler, pattern, sampling=sampling), list[int]()
        while 256 not in out:
            chosen = one.choose_on(0, FLAT, one.mask())
            out += [chosen.token, *chosen.forced]
        return out

    sampling = Sampling(temperature=1.0, seed=8)
    one_by_one = sampling.model_copy(update={"logprobs": 0})
    assert text(sampling) == text(one_by_one)
    assert len(set(text(sampling))) > 5


# --- drafts ---------------------------------------------------------------------------------------


def rows(*tokens: int) -> Rows:
    """A row of logits a token, each with one likely token."""
    found = np.zeros((len(tokens), len(PIECES)), np.float32)
    found[np.arange(len(tokens)), tokens] = 9.0
    return found


def free(sampling: Sampling = GREEDY) -> Decoding:
    return Decoding(sampling=sampling, vocabulary=len(PIECES), end_tokens=END)


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        ((), [5]),
        ((5, 6, 7), [5, 6, 7, 8]),
        ((5, 9, 7), [5, 6]),
        ((9, 6, 7), [5]),
    ],
)
def test_guesses_are_kept_up_to_the_first_wrong_one(
    draft: tuple[int, ...], expected: list[int]
) -> None:
    feed = Feed(0, [1, 2], True, draft)
    (run,) = sample([feed], rows(5, 6, 7, 8)[: rows_of(feed)], {0: None}, {0: free()})
    assert [one.token for one in run.sampled] == expected
    assert run.held_tokens == 2 + len(expected) - 1


def test_an_end_token_ends_a_run_even_when_it_was_guessed() -> None:
    feed = Feed(0, [1], True, (5, 256, 7))
    (run,) = sample([feed], rows(5, 256, 7, 8), {0: None}, {0: free()})
    assert [(one.token, one.is_end) for one in run.sampled] == [(5, False), (256, True)]
    assert run.held_tokens == 2


def test_each_feed_has_its_own_rows_and_those_that_do_not_sample_have_none() -> None:
    feeds = [Feed(0, [1], True, (5,)), Feed(1, [1, 2, 3], False), Feed(2, [4], True)]
    decodings = {sequence: free() for sequence in range(3)}
    runs = sample(feeds, rows(5, 6, 7), {0: None, 2: None}, decodings)
    assert [[one.token for one in run.sampled] for run in runs] == [[5, 6], [], [7]]
    assert [run.held_tokens for run in runs] == [2, 3, 1]
    assert [one.sequence for run in runs for one in run.sampled] == [0, 0, 2]


def test_guesses_are_sampled_under_the_constraint_and_stop_where_it_forces(
    compiler: ConstraintCompiler,
) -> None:
    bound = decoding(compiler, "[ab]{2}cd[ef]")
    feed = Feed(0, [1], True, (*b"abcd",))
    logits = rows(*b"abzzz")
    (run,) = sample([feed], logits, masks([feed], {0: bound}), {0: bound})
    assert [(one.token, one.forced) for one in run.sampled] == [
        (ord("a"), ()),
        (ord("b"), (*b"cd",)),
    ]
    assert run.held_tokens == 2


def test_a_constraint_that_cannot_go_on_within_a_draft_shows_at_the_next_step(
    compiler: ConstraintCompiler,
) -> None:
    bound = decoding(compiler, "[ab]+")
    feed = Feed(0, [1], True, (ord("x"), ord("a")))
    wrong = np.arange(len(PIECES)) == ord("x")
    (run,) = sample([feed], rows(*b"xab"), {0: wrong}, {0: bound})
    assert [one.token for one in run.sampled] == [ord("x")]
    with pytest.raises(SequenceError, match="cannot go on"):
        masks([feed], {0: bound})


@pytest.mark.parametrize("seed", range(20))
def test_draws_are_the_same_with_and_without_drafts(seed: int) -> None:
    """Logits as a function of the position; drafts that are right, wrong and too long."""
    chance = np.random.default_rng(seed)
    logits = chance.normal(0, 2, (40, len(PIECES))).astype(np.float32)
    logits[:, 256] = -100.0
    settings = Sampling(temperature=1.2, top_k=12, seed=seed, repetition_penalty=1.3)
    plain = free(settings)
    expected = [plain.choose(0, row, None).token for row in logits]
    drafted, out = free(settings), list[int]()
    while len(out) < 32:
        count = int(chance.integers(0, 8))
        draft = expected[len(out) : len(out) + count]
        if draft and chance.random() < 0.5:
            draft[int(chance.integers(len(draft)))] = 3
        feed = Feed(0, [1], True, draft)
        at = logits[len(out) : len(out) + 1 + len(draft)]
        run: Run = sample([feed], at, {0: None}, {0: drafted})[0]
        out += [one.token for one in run.sampled]
    assert out == expected[: len(out)]
