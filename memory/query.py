"""What a search asks for, inside the kernel: the call `Retrieve` with its namespaces resolved.

A plain value; `search.py` says what each field does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmos.syscalls.values import JsonObject

Mode = Literal["dense", "lexical", "hybrid"]
# How well each of some texts answers a query, from 0 to 1; it may take its time.
Reranker = Callable[[str, Sequence[str]], Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """The k best notes of some namespaces for a text.

    `vector` is the text's embedding, which `lexical` does not need, by the `model` of that text in
    the store (None: not checked). `at` is the time whose facts
    are wanted, in seconds since the epoch: None is now. `recency_s` is the age in seconds at which
    a score has halved. `diversity` goes from 0 (by score alone) to 1.
    """

    text: str
    namespaces: Sequence[str]
    vector: Sequence[float] | None = None
    model: str | None = None
    k: int = 5
    mode: Mode = "hybrid"
    where: JsonObject = field(default_factory=dict[str, object])
    kinds: Sequence[str] | None = None
    at: float | None = None
    with_history: bool = False
    recency_s: float | None = None
    diversity: float = 0.0
    reranker: Reranker | None = None
    neighbours: int = 0
    with_parent: bool = False
    hops: int = 0
