"""What a sequence carries between steps besides its KV, the same on every local driver.

A driver keeps one `Decoding` per sequence. Around each forward pass it asks for the masks first,
so that a constraint that cannot go on is refused before any KV has changed, and for the tokens
after it.

Two things make one pass give several tokens. A constraint may leave one way on: what it forces is
taken without asking the model. And a feed may carry a draft, guesses at what follows: they are
computed along with it, and as far as sampling chooses what was guessed, the next row of logits is
good. Neither changes what is generated.

Source: speculative decoding with a deterministic proposal, Leviathan et al. 2023
(arXiv 2211.17192), where accepting by the sampled token itself keeps the target distribution.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from llmos.drivers.constraint import Matcher
from llmos.drivers.contract import DeviceError, Feed, Sampled, SequenceError, SequenceId
from llmos.drivers.sampling import Mask, Row, Rows, Sampler
from llmos.syscalls.options import Sampling


class Decoding:
    """One sequence's adapter, sampler and place in its constraint.

    `generated` are tokens that were sampled before a preemption: sampling continues after them.
    Raises: DeviceError when the sampling names a token that the vocabulary does not have, or the
    constraint forbids what was generated.
    """

    def __init__(
        self,
        *,
        sampling: Sampling,
        vocabulary: int,
        end_tokens: Collection[int],
        matcher: Matcher | None = None,
        prompt: Sequence[int] = (),
        generated: Sequence[int] = (),
        adapter: str | None = None,
    ) -> None:
        self.adapter = adapter
        self._sampler = Sampler(sampling, vocabulary, prompt, generated)
        self._matcher = matcher
        self._end_tokens = end_tokens
        if matcher is not None:
            for token in generated:
                matcher.accept(token)
            matcher.check()

    def mask(self) -> Mask | None:
        """The tokens that the constraint allows next; None without a constraint.

        Raises: DeviceError when the constraint is too complex to go on.
        """
        return None if self._matcher is None else self._matcher.mask()

    def choose(self, sequence: SequenceId, logits: Row, mask: Mask | None) -> Sampled:
        """Choose the token after a forward pass and advance the constraint by it.

        A complete constraint allows end tokens only, so that it ends by one.
        Raises: DeviceError when the logits are not finite.
        """
        choice = self._sampler.sample(logits, mask)
        is_end = choice.token in self._end_tokens
        if self._matcher is not None and not is_end:
            self._matcher.accept(choice.token)
        return Sampled(sequence, choice.token, is_end, choice.logprob, choice.top)

    def choose_on(self, sequence: SequenceId, logits: Row, mask: Mask | None) -> Sampled:
        """`choose`, and go on over the tokens that the constraint then forces, if any.

        They are what choosing one by one would have given, and they count as generated. Without
        logprobs only: a forced token has none.
        Raises: DeviceError when the logits are not finite.
        """
        sampled = self.choose(sequence, logits, mask)
        if self._matcher is None or sampled.is_end or sampled.logprob is not None:
            return sampled
        forced = self._matcher.take_forced()
        self._sampler.skip(forced)
        if self._matcher.is_complete:
            forced.append(min(self._end_tokens))
        return sampled._replace(forced=tuple(forced))


class Run(NamedTuple):
    """What one feed of a step came to, in order of generation."""

    feed: Feed
    sampled: list[Sampled]

    @property
    def held_tokens(self) -> int:
        """Of the feed's tokens and draft, those that are to stay in KV, from the first on: each
        sampled token but the last was a right guess.
        """
        return len(self.feed.tokens) + max(0, len(self.sampled) - 1)


def masks(
    feeds: Sequence[Feed], decodings: Mapping[SequenceId, Decoding]
) -> dict[SequenceId, Mask | None]:
    """The mask of each sequence that is to sample. Raises: SequenceError."""
    found: dict[SequenceId, Mask | None] = {}
    for feed in feeds:
        if feed.sample:
            try:
                found[feed.sequence] = decodings[feed.sequence].mask()
            except DeviceError as problem:
                raise SequenceError(str(problem), feed.sequence) from problem
    return found


def rows_of(feed: Feed) -> int:
    """How many rows of logits a feed asks for: after its last token and each guess of its draft."""
    return 1 + len(feed.draft) if feed.sample else 0


def sample(
    feeds: Sequence[Feed],
    logits: Rows,
    allowed: Mapping[SequenceId, Mask | None],
    decodings: Mapping[SequenceId, Decoding],
) -> list[Run]:
    """Sample what the feeds of a step ask for; one run a feed, in their order.

    `logits` are `(sum of rows_of(feed), vocabulary)` in the feeds' order; `allowed` is from `masks`
    before the forward pass. The driver then drops the KV beyond `Run.held_tokens`.
    Raises: DeviceError when logits are not finite; the sequences before have moved on.
    """
    runs: list[Run] = []
    start = 0
    for feed in feeds:
        rows = logits[start : start + rows_of(feed)]
        start += len(rows)
        mask = allowed[feed.sequence] if feed.sample else None
        runs.append(Run(feed, _run(feed, rows, mask, decodings[feed.sequence])))
    return runs


def _run(feed: Feed, rows: Rows, mask: Mask | None, decoding: Decoding) -> list[Sampled]:
    """Sample row by row, with the draws and masks of one token a step, while guesses are right.

    The target distribution is kept without correction: each token is sampled from the model's own
    row, and a guess only decides whether the next row is of use.
    """
    sampled: list[Sampled] = []
    for row, guess in zip(rows, (*feed.draft, None), strict=False):
        if sampled:
            try:
                mask = decoding.mask()
            except DeviceError:
                break  # the next step's masks find it again, and it is that step's error
        one = decoding.choose_on(feed.sequence, row, mask)
        sampled.append(one)
        if one.token != guess or one.is_end or one.forced:
            break
    return sampled
