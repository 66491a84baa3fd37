"""What a sequence carries between steps besides its KV, the same on every local driver.

A driver keeps one `Decoding` per sequence. Around each forward pass it asks for the masks first,
so that a constraint that cannot go on is refused before any KV has changed, and for the tokens
after it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from llmos.drivers.constraint import Matcher
from llmos.drivers.contract import DeviceError, Feed, Sampled, SequenceError, SequenceId
from llmos.drivers.sampling import Mask, Row, Sampler
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
