"""FAISS as the memory store uses it: loaded when first needed, and how many threads it takes."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


def faiss_library() -> Any:
    """The library; its stubs do not know what its Python layer adds."""
    import faiss

    return faiss


def all_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def threads(count: int) -> Generator[None]:
    """Have FAISS use so many threads for what the calling thread does in this block.

    A search uses one: a scan of 10,000 vectors takes 0.3 ms there, and a thread team ends each scan
    at a barrier, which waits for the cores that a model uses: 24 to 56 ms, measured. OpenMP keeps
    the number for each calling thread apart.
    """
    faiss = faiss_library()

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
