"""Which worked examples to show: those nearest to the task.

Source: Liu et al., "What Makes Good In-Context Examples for GPT-3?", 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmos.agents.handle import OS
from llmos.agents.prompts import Example
from llmos.syscalls.errors import SyscallError


async def nearest_examples(
    os: OS, task: str, examples: Sequence[Example], *, k: int
) -> list[Example]:
    """The `k` examples nearest in meaning to a task, the nearest last.

    Where no embedding model can be used they are the first `k`.
    """
    if len(examples) <= 1:
        return list(examples)
    order = await by_nearness(os, task, [example.task for example in examples])
    return [examples[index] for index in reversed(order[:k])]


async def by_nearness(os: OS, query: str, texts: Sequence[str]) -> list[int]:
    """The indices of texts, the nearest in meaning to a query first."""
    near = await nearness(os, query, texts)
    return sorted(range(len(texts)), key=lambda index: -near[index])


async def nearness(os: OS, query: str, texts: Sequence[str]) -> list[float]:
    """How near in meaning each text is to a query, as the cosine of their embeddings.

    All the same where no embedding model can be used.
    """
    try:
        embedded = await os.embed([query, *texts])
    except SyscallError as problem:
        if problem.code not in ("not_available", "denied"):
            raise
        return [0.0] * len(texts)
    wanted, *vectors = embedded.vectors
    return [sum(a * b for a, b in zip(wanted, vector, strict=True)) for vector in vectors]
