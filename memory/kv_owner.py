"""Who may share computed KV with whom, said in the tokens themselves.

KV is shared where two sequences begin with the same tokens. A token at a private position is
marked with its domain, so that equal text in two domains is different to every index that compares
tokens: no lookup, fork or eviction can tell one domain what another holds. The first
`public_tokens` of a sequence carry no mark and are shared by all.

The mark is a hash of the domain's name: it needs no table, and is the same after a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

_TOKEN_BITS = 32
# What one step of `nice` is worth where KV must go: five steps are a factor of three, as between
# processes of a Unix scheduler.
_NICE_STEP = 1.25
_TOKEN_MASK = (1 << _TOKEN_BITS) - 1


class Owner(NamedTuple):
    """Whose tokens a sequence holds.

    KV differs by `adapter`. The domain "" is everybody's: all its tokens are public.
    """

    adapter: str | None = None
    domain: str = ""
    public_tokens: int = 0
    program: int = 0  # who is expected to come back for it; 0: not known
    nice: int = 0

    @property
    def weight(self) -> float:
        """How much sparing this owner a wait counts, by its `nice`; 1 for a `nice` of 0."""
        return _NICE_STEP**-self.nice


EVERYBODY = Owner()
_PASSING = "~"


def passing_domain(name: str) -> str:
    """A domain that nobody will ever be in again once this kernel has stopped."""
    return _PASSING + name


def is_passing(domain: str) -> bool:
    return domain.startswith(_PASSING)


def marked(tokens: Sequence[int], owner: Owner, *, start: int = 0) -> list[int]:
    """Tokens from position `start` on, each private one marked with its owner's domain."""
    if not owner.domain:
        return list(tokens)
    public = max(0, owner.public_tokens - start)
    mark = _mark(owner.domain)
    return [*tokens[:public], *(token | mark for token in tokens[public:])]


def unmarked(tokens: Iterable[int]) -> list[int]:
    """The tokens without their marks."""
    return [token & _TOKEN_MASK for token in tokens]


@lru_cache(maxsize=1024)
def _mark(domain: str) -> int:
    digest = blake2b(domain.encode(), digest_size=8).digest()
    return (int.from_bytes(digest) or 1) << _TOKEN_BITS
