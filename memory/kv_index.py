"""Which of many saved runs of tokens begin as a prompt does, for each adapter.

A thin layer over `radix.py`: runs have numbers, their private tokens are marked, and KV of
different adapters is never compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmos.memory.kv_owner import Owner, marked
from llmos.memory.radix import Match, RadixTree
from llmos.syscalls.errors import KernelPanic


class Index:
    """Numbered runs of tokens, each with its owner."""

    def __init__(self) -> None:
        self._trees: dict[str | None, RadixTree] = {}
        self._adapters: dict[int, str | None] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._adapters

    def add(self, number: int, owner: Owner, tokens: Sequence[int]) -> None:
        """Take in a run under a new number."""
        tree = self._trees.setdefault(owner.adapter, RadixTree())
        tree.add(number)
        tree.extend(number, marked(tokens, owner))
        self._adapters[number] = owner.adapter

    def remove(self, number: int) -> None:
        """Forget a run."""
        adapter = self._adapters.pop(number)
        tree = self._trees[adapter]
        tree.remove(number)
        if not len(tree):
            del self._trees[adapter]

    def match(self, owner: Owner, tokens: Sequence[int], limit_tokens: int) -> Match:
        """The longest beginning of these tokens that runs lend to an owner, and those runs."""
        tree = self._trees.get(owner.adapter)
        return tree.match(marked(tokens, owner), limit_tokens) if tree else Match(0, frozenset())

    def match_whole(self, owner: Owner, tokens: Sequence[int], limit_tokens: int) -> Match:
        """As `match`, but of runs that these tokens begin with as a whole."""
        tree = self._trees.get(owner.adapter)
        if tree is None:
            return Match(0, frozenset())
        return tree.match_whole(marked(tokens, owner), limit_tokens)

    def holders(self, owner: Owner, tokens: Sequence[int]) -> frozenset[int]:
        """The runs that begin with all of these tokens."""
        match = self.match(owner, tokens, len(tokens))
        return match.holders if match.tokens == len(tokens) else frozenset()

    def within(self, owner: Owner, tokens: Sequence[int]) -> list[int]:
        """The runs that these tokens begin with as a whole."""
        tree = self._trees.get(owner.adapter)
        return tree.within(marked(tokens, owner)) if tree else []

    def only_here(self, number: int) -> int:
        """How many tokens at the end of a run no other has."""
        return self._trees[self._adapters[number]].only_here(number)

    def check(self, owners: Mapping[int, Owner]) -> None:
        """Raises: KernelPanic unless the index holds exactly these numbers."""
        if {n: owner.adapter for n, owner in owners.items()} != self._adapters:
            raise KernelPanic("the index does not hold exactly the saved runs")
        for adapter, tree in self._trees.items():
            tree.check()
            members = [n for n, held in self._adapters.items() if held == adapter]
            if len(tree) != len(members) or not all(number in tree for number in members):
                raise KernelPanic(f"the tree of {adapter} does not hold exactly its runs")
