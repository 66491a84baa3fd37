"""Misuse that every driver refuses in the same words, before it touches the device.

The kernel and the memory are our own, so these are our faults and not an agent's; a clear error
is cheaper than a wrong KV cache or an abort inside a native library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from llmos.drivers.contract import (
    MOST_DRAFT_TOKENS,
    DeviceError,
    Feed,
    ModelInfo,
    SequenceId,
)
from llmos.drivers.decoding import Decoding


def check_sequence(info: ModelInfo, sequence: SequenceId) -> None:
    """Raises: DeviceError when the id is out of range."""
    if not 0 <= sequence < info.sequences:
        raise DeviceError(f"there is no sequence {sequence}; {info.name} has {info.sequences}")


def check_empty(sequence: SequenceId, length: int) -> None:
    """Raises: DeviceError when the sequence holds tokens."""
    if length:
        raise DeviceError(f"sequence {sequence} holds {length} tokens; trim it to 0 first")


def check_fits(info: ModelInfo, tokens: int) -> None:
    """Raises: DeviceError when a saved sequence of `tokens` tokens is longer than the window."""
    if tokens > info.context_tokens:
        raise DeviceError(
            f"the saved sequence holds {tokens} tokens; the window is {info.context_tokens}"
        )


def check_kept(info: ModelInfo, sequence: SequenceId, tokens: int, length: int) -> None:
    """Raises: DeviceError unless a sequence of `length` tokens can keep its first `tokens`."""
    if not 0 <= tokens <= length:
        raise DeviceError(f"sequence {sequence} holds {length} tokens; cannot keep {tokens}")
    if 0 < tokens < length and not info.abilities.can_trim:
        raise DeviceError(f"a model of the kind {info.architecture} keeps whole sequences only")


def check_feeds(
    info: ModelInfo,
    feeds: Sequence[Feed],
    *,
    length: Callable[[SequenceId], int],
    decodings: Mapping[SequenceId, Decoding],
) -> None:
    """Refuse a step that the contract does not allow.

    Raises: DeviceError for an unknown sequence or token, two feeds of one sequence, an empty feed,
    more tokens than a step or a sequence can take, adapters that cannot be mixed, or drafts that
    the driver cannot verify.
    """
    total = sum(len(feed.tokens) + len(feed.draft) for feed in feeds)
    if total > info.batch_tokens:
        raise DeviceError(f"{total} tokens in one step; {info.name} takes {info.batch_tokens}")
    guesses = sum(len(feed.draft) for feed in feeds)
    if guesses and not info.abilities.can_verify:
        raise DeviceError(f"{info.name} cannot verify drafts")
    if guesses > MOST_DRAFT_TOKENS:
        raise DeviceError(f"{guesses} draft tokens in one step; it takes {MOST_DRAFT_TOKENS}")
    if len({feed.sequence for feed in feeds}) != len(feeds):
        raise DeviceError("a sequence has two feeds in one step")
    for feed in feeds:
        _check_feed(info, feed, length, decodings)
    adapters = {decodings[feed.sequence].adapter for feed in feeds}
    if len(adapters) > 1 and not info.abilities.can_mix_adapters:
        named = ", ".join(sorted(str(adapter) for adapter in adapters))
        raise DeviceError(f"one step mixes the adapters {named}; {info.driver} cannot")


def _check_feed(
    info: ModelInfo,
    feed: Feed,
    length: Callable[[SequenceId], int],
    decodings: Mapping[SequenceId, Decoding],
) -> None:
    check_sequence(info, feed.sequence)
    if feed.sequence not in decodings:
        raise DeviceError(f"sequence {feed.sequence} was never added")
    if not feed.tokens:
        raise DeviceError(f"sequence {feed.sequence} is fed no tokens")
    if feed.draft and not feed.sample:
        raise DeviceError(f"sequence {feed.sequence} has a draft but is not to sample")
    tokens = (*feed.tokens, *feed.draft)
    if not 0 <= min(tokens) <= max(tokens) < info.vocabulary:
        raise DeviceError(
            f"sequence {feed.sequence} is fed a token outside the vocabulary of {info.vocabulary}"
        )
    after = length(feed.sequence) + len(tokens)
    if after > info.context_tokens:
        raise DeviceError(
            f"sequence {feed.sequence} would hold {after} tokens of {info.context_tokens} at most"
        )
