"""The part of an agent's handle by which it trains, measures and releases models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llmos.syscalls import calls
from llmos.syscalls import evaluation_results as e
from llmos.syscalls import learning_results as r
from llmos.syscalls import traces as t
from llmos.syscalls.evaluation import Between, OneOf
from llmos.syscalls.learning import NumberFormat
from llmos.syscalls.trap import Trap
from llmos.syscalls.values import JsonObject

Rows = Sequence[calls.Example | JsonObject] | str


class LearningCalls:
    """One method per call; the handle (`handle.py`) is made of it. Raises as the handle does."""

    __slots__ = ("_trap",)

    def __init__(self, trap: Trap) -> None:
        self._trap = trap

    async def finetune(self, data: Rows, name: str, **options: Any) -> int:
        """Start training an adapter and return the job's pid; options as in `calls.Finetune`."""
        rows = data if isinstance(data, str) else tuple(data)
        spawned = await self._trap.call(calls.Finetune(data=rows, name=name, **options))
        return spawned.pid

    async def evaluate(
        self,
        data: Rows,
        *,
        model: str | None = None,
        adapter: str | None = None,
        **options: Any,
    ) -> e.Evaluated:
        """What a model or version is worth on held-out rows; options as in `calls.Evaluate`."""
        rows = data if isinstance(data, str) else tuple(data)
        return await self._trap.call(
            calls.Evaluate(data=rows, model=model, adapter=adapter, **options)
        )

    async def search(
        self,
        finetune: calls.Finetune,
        space: Mapping[str, Between | OneOf],
        *,
        trials: int = 20,
        **options: Any,
    ) -> int:
        """Start a search for a finetune's settings and return its pid; as in `calls.Search`."""
        spawned = await self._trap.call(
            calls.Search(finetune=finetune, space=dict(space), trials=trials, **options)
        )
        return spawned.pid

    async def model_list(self) -> tuple[r.ModelVersion, ...]:
        """The configured models and the versions."""
        return (await self._trap.call(calls.ModelList())).models

    async def model_lineage(self, name: str) -> r.ModelVersions:
        """A version and what it was made from, with what was decided about it."""
        return await self._trap.call(calls.ModelList(name=name))

    async def model_promote(
        self,
        name: str,
        *,
        slot: str | None = None,
        checks: Sequence[calls.GateCheck] = (),
        force: bool = False,
        reason: str = "",
    ) -> r.ModelVersion:
        """Have a version serve its slot (an adapter: its base), if the gate lets it.

        Raises also: SyscallError("refused") with the figures of the checks that do not hold.
        """
        return await self._trap.call(
            calls.ModelPromote(
                name=name, slot=slot, checks=tuple(checks), force=force, reason=reason
            )
        )

    async def model_rollback(
        self, base: str | None = None, *, reason: str = ""
    ) -> tuple[r.ModelVersion, ...]:
        """Undo the last promotion of a base or another slot."""
        call = calls.ModelRollback(base=base, reason=reason)
        return (await self._trap.call(call)).models

    async def model_delete(self, name: str) -> r.Deleted:
        """Delete a version that nobody needs. Raises also: SyscallError("busy") saying who does."""
        return await self._trap.call(calls.ModelDelete(name=name))

    async def model_export(
        self,
        name: str,
        format: Literal["safetensors", "gguf"] = "safetensors",
        *,
        quantize: NumberFormat | None = None,
        path: str | None = None,
    ) -> r.Exported:
        """Write a version merged with its base: a folder of safetensors, or a GGUF file."""
        return await self._trap.call(
            calls.ModelExport(name=name, format=format, quantize=quantize, path=path)
        )

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
