"""A radix tree over token runs: which sequences hold which prefixes.

Owns the sharing structure only: a node is a run of tokens, `holders` are the sequences that hold
the whole run (and so everything above it). Refuses to know drivers, eviction and what a token
means. Not thread-safe; its callers are `kv.py` and `tiers.py`.

The tree is canonical: every node but the root has holders, and a node whose only child has the
same holders is merged with it. A decode step that appends one token to a sequence of its own costs
O(1), whatever the sequence's length.

Source: the prefix tree of SGLang's RadixAttention (NeurIPS'24), here over whole sequences instead
of pages, because that is what llama.cpp and our torch driver can fork and trim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple

from llmos.drivers.contract import SequenceId
from llmos.syscalls.errors import KernelPanic


class Node:
    """A run of tokens below `parent`. Children are keyed by the first token of their run."""

    __slots__ = ("children", "holders", "parent", "run")

    def __init__(self, run: list[int], parent: Node | None, holders: set[SequenceId]) -> None:
        self.run = run
        self.parent = parent
        self.holders = holders
        self.children: dict[int, Node] = {}


class Match(NamedTuple):
    """The longest held prefix of some tokens, and every sequence that holds all of it."""

    tokens: int
    holders: frozenset[SequenceId]


class RadixTree:
    """The token runs of a set of sequences, each of which ends at exactly one node."""

    def __init__(self) -> None:
        self._root = Node([], None, set())
        self._ends: dict[SequenceId, Node] = {}
        self._lengths: dict[SequenceId, int] = {}
        self.unique_tokens = 0  # tokens in the tree, a shared one counted once

    def __len__(self) -> int:
        return len(self._ends)

    def __contains__(self, sequence: SequenceId) -> bool:
        return sequence in self._ends

    def length(self, sequence: SequenceId) -> int:
        """Tokens of a sequence."""
        return self._lengths[sequence]

    def tokens(self, sequence: SequenceId) -> list[int]:
        """The tokens of a sequence, in order."""
        runs = [node.run for node in self._path_up(sequence)]
        return [token for run in reversed(runs) for token in run]

    def only_here(self, sequence: SequenceId) -> int:
        """How many tokens at the end of a sequence no other sequence holds."""
        tokens = 0
        for node in self._path_up(sequence):
            if len(node.holders) > 1:
                break
            tokens += len(node.run)
        return tokens

    def holders(self, sequence: SequenceId) -> frozenset[SequenceId]:
        """The sequences that hold all tokens of this one, itself included."""
        return frozenset(self._ends[sequence].holders)

    def common_with(self, sequence: SequenceId, others: Set[SequenceId]) -> int:
        """How many tokens at the start of a sequence at least one of these others holds too."""
        depth = self._lengths[sequence]
        for node in self._path_up(sequence):
            if not others.isdisjoint(node.holders):
                return depth
            depth -= len(node.run)
        return 0

    def within(self, tokens: list[int]) -> list[SequenceId]:
        """The sequences, empty ones aside, that these tokens begin with as a whole."""
        found: list[SequenceId] = []
        node, matched = self._root, 0
        while matched < len(tokens):
            child = node.children.get(tokens[matched])
            if child is None or _common(child.run, tokens, matched) < len(child.run):
                break
            node, matched = child, matched + len(child.run)
            found.extend(s for s in node.holders if self._ends[s] is node)
        return found

    def held_by(self, sequences: Set[SequenceId]) -> int:
        """Tokens that at least one of these sequences holds, a shared one counted once."""
        return sum(
            len(node.run) for node in self._nodes() if not sequences.isdisjoint(node.holders)
        )

    def match(self, tokens: list[int], limit_tokens: int) -> Match:
        """The longest prefix of `tokens`, at most `limit_tokens` long, that a sequence holds."""
        node, matched = self._root, 0
        while matched < limit_tokens:
            child = node.children.get(tokens[matched])
            if child is None:
                break
            common = min(_common(child.run, tokens, matched), limit_tokens - matched)
            node, matched = child, matched + common
            if common < len(child.run):
                break
        return Match(matched, frozenset(node.holders) if matched else frozenset())

    def match_whole(self, tokens: list[int], limit_tokens: int) -> Match:
        """The longest sequences that are as a whole a prefix of `tokens`, and at most so long."""
        found = self.within(tokens[:limit_tokens])
        longest = max((self._lengths[sequence] for sequence in found), default=0)
        return Match(longest, frozenset(s for s in found if self._lengths[s] == longest))

    def add(self, sequence: SequenceId) -> None:
        """Put an empty sequence into the tree."""
        self._root.holders.add(sequence)
        self._ends[sequence] = self._root
        self._lengths[sequence] = 0

    def remove(self, sequence: SequenceId) -> None:
        """Take a sequence out of the tree."""
        self.cut(sequence, 0)
        self._root.holders.discard(sequence)
        del self._ends[sequence], self._lengths[sequence]

    def extend(self, sequence: SequenceId, tokens: Sequence[int]) -> None:
        """Append tokens to a sequence, sharing the runs that others hold already."""
        rest = list(tokens)
        start = node = self._ends[sequence]
        self._lengths[sequence] += len(rest)
        while rest:
            if node is not self._root and len(node.holders) == 1:
                node.run.extend(rest)
                self.unique_tokens += len(rest)
                break
            child = node.children.get(rest[0])
            if child is None:
                child = Node(rest, node, {sequence})
                node.children[rest[0]] = child
                self.unique_tokens += len(rest)
                node = child
                break
            common = _common(child.run, rest, 0)
            if common < len(child.run):
                self._split(child, common)
            child.holders.add(sequence)
            node, rest = child, rest[common:]
        self._ends[sequence] = node
        # Only the node that the sequence has just grown out of can now equal its child: below it,
        # the sequence joined nodes that differed from each other already.
        self._merge(start)

    def cut(self, sequence: SequenceId, tokens: int) -> None:
        """Keep only the first `tokens` of a sequence."""
        node, depth = self._ends[sequence], self._lengths[sequence]
        left: list[Node] = []
        while depth > tokens and node.parent is not None:
            start = depth - len(node.run)
            if start < tokens:
                if len(node.holders) > 1:
                    left.append(self._split(node, tokens - start))
                    left[-1].holders.discard(sequence)
                else:
                    self.unique_tokens -= depth - tokens
                    del node.run[tokens - start :]
                break
            node.holders.discard(sequence)
            left.append(node)
            node, depth = node.parent, start
        self._ends[sequence] = node
        self._lengths[sequence] = min(tokens, self._lengths[sequence])
        for survivor in left:
            if survivor.holders:
                self._merge(survivor)
            else:
                self._drop(survivor)

    def check(self) -> None:
        """Raises: KernelPanic when the tree is not canonical or disagrees with its sequences."""
        unique = 0
        ending: dict[int, set[SequenceId]] = {}
        for sequence, end in self._ends.items():
            ending.setdefault(id(end), set()).add(sequence)
            path = self._path_up(sequence)
            _require(sum(len(node.run) for node in path) == self._lengths[sequence], "a length")
        for node in self._nodes():
            below = [child.holders for child in node.children.values()]
            expected = set[SequenceId]().union(ending.get(id(node), set()), *below)
            _require(node.holders == expected, "a node's holders")
            for first, child in node.children.items():
                _require(child.parent is node and child.run[:1] == [first], "a child's key")
            if node is not self._root:
                unique += len(node.run)
                _require(bool(node.run) and bool(node.holders), "an empty node")
                _require(not (len(below) == 1 and below[0] == node.holders), "an unmerged node")
        _require(unique == self.unique_tokens, "the count of unique tokens")

    def _path_up(self, sequence: SequenceId) -> Iterator[Node]:
        node = self._ends[sequence]
        while node.parent is not None:
            yield node
            node = node.parent

    def _nodes(self) -> Iterator[Node]:
        stack = [self._root]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node's run in two; the node keeps the upper part, the lower one is returned."""
        lower = Node(node.run[at:], node, set(node.holders))
        lower.children = node.children
        for child in lower.children.values():
            child.parent = lower
        self._move_ends(node, lower)
        del node.run[at:]
        node.children = {lower.run[0]: lower}
        return lower

    def _merge(self, node: Node) -> None:
        """Absorb the only child if exactly the same sequences hold it."""
        if node is self._root or len(node.children) != 1:
            return
        (child,) = node.children.values()
        if child.holders != node.holders:
            return
        node.run.extend(child.run)
        node.children = child.children
        for grandchild in node.children.values():
            grandchild.parent = node
        self._move_ends(child, node)

    def _move_ends(self, source: Node, target: Node) -> None:
        for sequence in source.holders:
            if self._ends[sequence] is source:
                self._ends[sequence] = target

    def _drop(self, node: Node) -> None:
        if node.parent is None:
            raise KernelPanic("the radix tree's root cannot be dropped")
        del node.parent.children[node.run[0]]
        self.unique_tokens -= len(node.run)


def _common(run: list[int], tokens: list[int], start: int) -> int:
    """How many tokens of `run` agree with `tokens` from `start` on."""
    length = min(len(run), len(tokens) - start)
    other = tokens[start : start + length]
    if run[:length] == other:
        return length
    return next(i for i, (a, b) in enumerate(zip(run, other, strict=False)) if a != b)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise KernelPanic(f"the radix tree is inconsistent: {what}")
