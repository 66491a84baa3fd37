"""Which cells of one shared KV buffer the sequences hold.

Only a fork shares cells: tokens that were computed or restored twice are in the buffer twice,
however equal they are. So cells are counted apart from tokens, by the same radix tree over numbers
of which each is given out once.
"""

from __future__ import annotations

from collections.abc import Set

from llmos.drivers.contract import SequenceId
from llmos.memory.radix import RadixTree
from llmos.syscalls.errors import ConfigError, KernelPanic


class Cells:
    """A buffer of `total` cells, one a token.

    Raises: ConfigError when one full sequence does not fit into it.
    """

    def __init__(self, total: int, *, context_tokens: int) -> None:
        if total < context_tokens:
            raise ConfigError(
                "shared_cells", f"{total} cells cannot hold one sequence of {context_tokens}"
            )
        self.total = total
        self._tree = RadixTree()
        self._next = 0

    @property
    def used(self) -> int:
        """Cells that some sequence holds."""
        return self._tree.unique_tokens

    def add(self, sequence: SequenceId) -> None:
        """Take in an empty sequence."""
        self._tree.add(sequence)

    def extend(self, sequence: SequenceId, tokens: int) -> None:
        """Give a sequence so many new cells. Raises: KernelPanic when the buffer has no more."""
        self._tree.extend(sequence, range(self._next, self._next + tokens))
        self._next += tokens
        if self.used > self.total:
            raise KernelPanic(f"the shared KV buffer of {self.total} tokens overflowed")

    def fork(self, source: SequenceId, target: SequenceId, tokens: int) -> None:
        """Let an empty sequence hold the first cells of another."""
        self._tree.extend(target, self._tree.tokens(source)[:tokens])

    def cut(self, sequence: SequenceId, tokens: int) -> None:
        """Keep only the first cells of a sequence."""
        self._tree.cut(sequence, tokens)

    def remove(self, sequence: SequenceId) -> None:
        """Take a sequence out."""
        self._tree.remove(sequence)

    def held_by(self, sequences: Set[SequenceId]) -> int:
        """Cells that at least one of these sequences holds."""
        return self._tree.held_by(sequences)

    def common_with(self, sequence: SequenceId, others: Set[SequenceId]) -> int:
        """How many cells at the start of a sequence at least one of these others holds too."""
        return self._tree.common_with(sequence, others)

    def check(self, sequence: SequenceId, tokens: int) -> None:
        """Raises: KernelPanic unless a sequence holds a cell for each of its tokens."""
        if sequence not in self._tree or self._tree.length(sequence) != tokens:
            raise KernelPanic(f"sequence {sequence} has not a cell for each token")
        self._tree.check()
