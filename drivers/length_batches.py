"""Batches of rows of like length, so that little is computed on padding.

A batch is padded to its longest row. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# Most tokens of one forward pass, padding included: what fits a CPU's caches, and fills a GPU.
BATCH_TOKENS = {"cpu": 2_048, "cuda": 65_536}
# About how many tokens of padding take as long as beginning another pass of a small encoder.
START_TOKENS = 64


def length_batches(
    lengths: Sequence[int], *, batch_tokens: int, start_tokens: int | None = None
) -> Iterator[list[int]]:
    """Places of rows, shortest first, each batch of at most so many tokens with its padding.

    A row that is longer than that is a batch of its own. With `start_tokens` a batch also ends
    where a longer row would have more padding computed than a new batch costs.
    """
    batch: list[int] = []
    padding = 0
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        length = lengths[place]
        if batch:
            padding += len(batch) * (length - lengths[batch[-1]])
            is_dear = start_tokens is not None and padding > start_tokens
            if is_dear or (len(batch) + 1) * length > batch_tokens:
                yield batch
                batch, padding = [], 0
        batch.append(place)
    if batch:
        yield batch
