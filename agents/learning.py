"""The part of an agent's handle by which it trains, measures and releases models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmos.syscalls import calls
from llmos.syscalls import learning_results as r
from llmos.syscalls import traces as t
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

    async def trace_consent(
        self, namespace: str | None = None, *, is_granted: bool = True
    ) -> t.Consent:
        """Allow or forbid that a namespace's traces are kept to be learnt from; None: the own."""
        return await self._trap.call(calls.TraceConsent(namespace=namespace, is_granted=is_granted))

    async def outcome(
        self, pid: int | None = None, *, episode: int | None = None, **said: Any
    ) -> tuple[int, ...]:
        """Judge a process's episodes, or one; what can be said is in `calls.Outcome`."""
        judged = await self._trap.call(calls.Outcome(pid=pid, episode=episode, **said))
        return judged.episodes

    async def trace_data(
        self, namespaces: Sequence[str] | None = None, **options: Any
    ) -> t.TraceRows:
        """Write training rows made of traces into a file; options as in `calls.TraceData`."""
        names = None if namespaces is None else tuple(namespaces)
        return await self._trap.call(calls.TraceData(namespaces=names, **options))
