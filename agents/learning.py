"""The part of an agent's handle by which it trains, measures and releases models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmos.syscalls import learning as calls
from llmos.syscalls import learning_results as r
from llmos.syscalls.trap import Trap


class LearningCalls:
    """One method per call; the handle (`handle.py`) is made of it. Raises as the handle does."""

    __slots__ = ("_trap",)

    def __init__(self, trap: Trap) -> None:
        self._trap = trap

    async def finetune(self, data: Sequence[calls.Example] | str, name: str, **options: Any) -> int:
        """Start training an adapter and return the job's pid; options as in `calls.Finetune`."""
        rows = data if isinstance(data, str) else tuple(data)
        spawned = await self._trap.call(calls.Finetune(data=rows, name=name, **options))
        return spawned.pid

    async def evaluate(
        self,
        data: Sequence[calls.Example] | str,
        *,
        model: str | None = None,
        adapter: str | None = None,
    ) -> r.Evaluated:
        """Held-out loss of a model or adapter."""
        rows = data if isinstance(data, str) else tuple(data)
        return await self._trap.call(calls.Evaluate(data=rows, model=model, adapter=adapter))

    async def model_list(self) -> tuple[r.ModelVersion, ...]:
        """Models and adapters that the kernel knows."""
        return (await self._trap.call(calls.ModelList())).models

    async def model_promote(self, name: str) -> r.ModelVersion:
        """Make an adapter the default of its base."""
        return await self._trap.call(calls.ModelPromote(name=name))

    async def model_rollback(self, base: str | None = None) -> tuple[r.ModelVersion, ...]:
        """Undo the last promotion."""
        return (await self._trap.call(calls.ModelRollback(base=base))).models

    async def classify(
        self,
        texts: str | Sequence[str],
        model: str,
        *,
        task: str | None = None,
        top_k: int | None = None,
    ) -> r.Classified:
        """Label texts by a task model: a version, or what serves under the name of a slot."""
        many = (texts,) if isinstance(texts, str) else tuple(texts)
        return await self._trap.call(
            calls.Classify(texts=many, model=model, task=task, top_k=top_k)
        )

    async def tag(
        self, texts: str | Sequence[str | Sequence[str]], model: str, *, task: str | None = None
    ) -> r.Tagged:
        """Find entities in texts, or in sentences given as lists of words."""
        many = (texts,) if isinstance(texts, str) else texts
        return await self._trap.call(
            calls.Tag(
                texts=tuple(one if isinstance(one, str) else tuple(one) for one in many),
                model=model,
                task=task,
            )
        )
