"""KV of many sequences as torch tensors.

Owns one slab per sequence, which grows by blocks: memory is taken as tokens come, and given back
when a sequence is emptied. A fork shares its source's slab and costs nothing until one of the two
has to write where the other reads; then the one that writes copies its own tokens first. Refuses
to know models and what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from llmos.drivers.contract import SequenceId

if TYPE_CHECKING:
    import torch

BLOCK_TOKENS = 256


class KvShape(NamedTuple):
    """What one token takes: a key and a value of `dim` numbers per layer and head."""

    layers: int
    heads: int
    dim: int

    @property
    def numbers(self) -> int:
        return 2 * self.layers * self.heads * self.dim


@dataclass(slots=True, eq=False)
class _Slab:
    """A tensor `(layers, 2, 1, heads, capacity, dim)` and who uses it.

    `writer` may write in place from token `shared_tokens` on, where no other holder reads; a slab
    with one holder is all its own.
    """

    tensor: torch.Tensor
    layers: Sequence[torch.Tensor]
    holders: int
    writer: SequenceId | None
    shared_tokens: int = 0

    @property
    def capacity_tokens(self) -> int:
        return self.tensor.shape[4]


class KvStore:
    """The KV of `sequences` sequences. One thread at a time.

    Writing is in two steps, so that a failure between them changes nothing: `reserve` room, write
    into it, `advance`.
    """

    def __init__(
        self,
        shape: KvShape,
        *,
        sequences: int,
        context_tokens: int,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self._shape = shape
        self._context_tokens = context_tokens
        self._dtype = dtype
        self._device = device
        self._lengths = [0] * sequences
        self._slabs: list[_Slab | None] = [None] * sequences

    @property
    def bytes(self) -> int:
        """What all slabs take; a shared one counts once."""
        slabs = {id(slab): slab for slab in self._slabs if slab is not None}
        return sum(slab.tensor.nbytes for slab in slabs.values())

    def length(self, sequence: SequenceId) -> int:
        """Tokens that the sequence holds."""
        return self._lengths[sequence]

    def reserve(self, sequence: SequenceId, tokens: int) -> Sequence[torch.Tensor]:
        """Room for `tokens` more tokens: each layer's `(2, 1, heads, capacity, dim)`, keys first.

        What the sequence holds is at its beginning. Raises: whatever torch raises when memory does
        not suffice; nothing has changed then.
        """
        length = self._lengths[sequence]
        slab = self._slabs[sequence]
        if (
            slab is None
            or slab.capacity_tokens < length + tokens
            or not _can_write(slab, sequence, length)
        ):
            slab = self._moved(sequence, length + tokens)
        return slab.layers

    def advance(self, sequence: SequenceId, tokens: int) -> None:
        """Count tokens that were written into reserved room."""
        self._lengths[sequence] += tokens

    def fork(self, source: SequenceId, target: SequenceId, tokens: int) -> None:
        """Make the empty `target` hold the first `tokens` of `source`."""
        slab = self._slabs[source]
        if slab is None or not tokens:
            return
        if slab.holders == 1:
            slab.writer, slab.shared_tokens = source, 0
        slab.holders += 1
        slab.shared_tokens = max(slab.shared_tokens, tokens)
        self._slabs[target] = slab
        self._lengths[target] = tokens

    def trim(self, sequence: SequenceId, tokens: int) -> None:
        """Keep the first `tokens`; 0 gives the memory back."""
        self._lengths[sequence] = tokens
        if not tokens:
            self._release(sequence)

    def read(self, sequence: SequenceId) -> torch.Tensor:
        """A copy in main memory, `(layers, 2, 1, heads, tokens, dim)`."""
        import torch

        slab, length = self._slabs[sequence], self._lengths[sequence]
        if slab is None:
            return torch.empty(0, dtype=self._dtype)
        return slab.tensor.narrow(4, 0, length).cpu().contiguous()

    def write(self, sequence: SequenceId, tokens: int, payload: memoryview) -> None:
        """Fill the empty sequence from the bytes of what `read` gave.

        Raises: ValueError when they are not that many.
        """
        import torch

        if payload.nbytes != tokens * self._shape.numbers * self._dtype.itemsize:
            raise ValueError(f"{payload.nbytes} bytes are not the state of {tokens} tokens")
        if not tokens:
            return
        # torch warns of a buffer that it could write to and may not.
        flat = torch.frombuffer(bytearray(payload), dtype=self._dtype)
        layers, heads, dim = self._shape
        slab = self._new_slab(sequence, tokens)
        slab.tensor.narrow(4, 0, tokens).copy_(flat.view(layers, 2, 1, heads, tokens, dim))
        self._slabs[sequence] = slab
        self._lengths[sequence] = tokens

    def _moved(self, sequence: SequenceId, tokens: int) -> _Slab:
        """A slab of the sequence's own with room for `tokens`, and what it held copied over."""
        slab = self._new_slab(sequence, tokens)
        old, length = self._slabs[sequence], self._lengths[sequence]
        if old is not None:
            slab.tensor.narrow(4, 0, length).copy_(old.tensor.narrow(4, 0, length))
        self._release(sequence)
        self._slabs[sequence] = slab
        return slab

    def _release(self, sequence: SequenceId) -> None:
        slab, self._slabs[sequence] = self._slabs[sequence], None
        if slab is not None:
            slab.holders -= 1
            if slab.writer == sequence:
                slab.writer = None

    def _new_slab(self, sequence: SequenceId, tokens: int) -> _Slab:
        import torch

        blocks = -(-tokens // BLOCK_TOKENS)
        capacity = min(blocks * BLOCK_TOKENS, max(self._context_tokens, tokens))
        layers, heads, dim = self._shape
        tensor = torch.empty(
            (layers, 2, 1, heads, capacity, dim), dtype=self._dtype, device=self._device
        )
        return _Slab(tensor, tensor.unbind(0), holders=1, writer=sequence)


def _can_write(slab: _Slab, sequence: SequenceId, start: int) -> bool:
    """Whether a holder may write from token `start` on without another's seeing it."""
    if slab.holders == 1:
        return True
    return slab.writer == sequence and start >= slab.shared_tokens
