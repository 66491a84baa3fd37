"""Batches of rows of like length, so that little is computed on padding.

A batch is padded to its longest row. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# Most tokens of one forward pass, padding included: what fits a CPU's caches, and fills a GPU.
BATCH_TOKENS = {"cpu": 2_048, "cuda": 65_536}


def length_batches(lengths: Sequence[int], *, batch_tokens: int) -> Iterator[list[int]]:
    """Places of rows, shortest first, each batch of at most so many tokens with its padding.

    A row that is longer than that is a batch of its own.
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batch and (len(batch) + 1) * lengths[place] > batch_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
