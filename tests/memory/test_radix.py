"""The radix tree of token runs: sharing, splitting, merging."""

from __future__ import annotations

import pytest

from llmos.memory.radix import RadixTree
from llmos.syscalls.errors import KernelPanic


def tree_of(**sequences: list[int]) -> RadixTree:
    tree = RadixTree()
    for name, tokens in sequences.items():
        sequence = int(name.removeprefix("s"))
        tree.add(sequence)
        tree.extend(sequence, tokens)
        tree.check()
    return tree


def test_a_common_prefix_is_counted_once() -> None:
    tree = tree_of(s0=[1, 2, 3, 4], s1=[1, 2, 9])
    assert tree.unique_tokens == 5
    assert tree.tokens(0) == [1, 2, 3, 4]
    assert tree.tokens(1) == [1, 2, 9]
    assert (tree.only_here(0), tree.only_here(1)) == (2, 1)


def test_a_match_ends_inside_a_run_and_names_every_holder() -> None:
    tree = tree_of(s0=[1, 2, 3, 4], s1=[1, 2, 9])
    assert tree.match([1, 2, 3, 7], 4) == (3, {0})
    assert tree.match([1, 2, 3, 7], 1) == (1, {0, 1})
    assert tree.match([7], 1) == (0, frozenset())


def test_a_whole_match_is_the_longest_sequence_that_the_tokens_begin_with() -> None:
    tree = tree_of(s0=[1, 2, 3, 4], s1=[1, 2], s2=[1], s3=[1, 2])
    assert tree.match_whole([1, 2, 3, 7], 4) == (2, {1, 3})
    assert tree.match_whole([1, 2, 3, 4], 4) == (4, {0})
    assert tree.match_whole([1, 2, 3, 4], 3) == (2, {1, 3})
    assert tree.match_whole([1, 2, 3, 4], 1) == (1, {2})
    assert tree.match_whole([7], 1) == (0, frozenset())


def test_sequences_that_grow_in_step_stay_in_one_run() -> None:
    tree = tree_of(s0=[1, 2], s1=[1, 2])
    for token in range(100):
        for sequence in (0, 1):
            tree.extend(sequence, [token])
            tree.check()
    assert tree.unique_tokens == 102


def test_a_cut_leaves_what_others_hold() -> None:
    tree = tree_of(s0=[1, 2, 3, 4], s1=[1, 2, 3, 4])
    tree.cut(0, 1)
    tree.check()
    assert (tree.tokens(0), tree.tokens(1), tree.unique_tokens) == ([1], [1, 2, 3, 4], 4)
    tree.remove(1)
    tree.check()
    assert tree.unique_tokens == 1


def test_a_cut_beyond_the_end_changes_nothing() -> None:
    tree = tree_of(s0=[1, 2])
    tree.cut(0, 5)
    tree.check()
    assert tree.length(0) == 2


def test_tokens_held_by_a_set_count_shared_ones_once() -> None:
    tree = tree_of(s0=[1, 2, 3], s1=[1, 2, 9, 9], s2=[5])
    assert tree.held_by({0, 1}) == 5
    assert tree.held_by({2}) == 1
    assert tree.held_by(set()) == 0


def test_a_broken_tree_is_a_panic() -> None:
    tree = tree_of(s0=[1, 2, 3])
    tree.unique_tokens += 1
    with pytest.raises(KernelPanic, match="unique tokens"):
        tree.check()
