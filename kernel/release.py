"""Releasing versions as syscalls: what there is, what serves, what is deleted and exported.

A promotion passes the gate, then the devices that are open make the version ready, and only then
does the registry say that it serves: a call that comes meanwhile runs on what served before, and
the next one finds the new version waiting for it. Whatever goes wrong on the way leaves all as it
was. Event-loop thread only; the registry's work on files is done on worker threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llmos.kernel.devices import Devices
from llmos.kernel.files import FileSystem
from llmos.kernel.process import Process
from llmos.kernel.release_gate import Measure, judge, refusal
from llmos.kernel.settings import EmbeddingSetting, Settings
from llmos.memory.registry import SERVING_A_BASE, Registry
from llmos.syscalls import learning as calls
from llmos.syscalls import learning_results as r
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.learning import GateCheck
from llmos.syscalls.values import JsonObject


class Release:
    """`measure` evaluates a version, or a base (by its name) where the version is None."""

    def __init__(
        self,
        settings: Settings,
        *,
        devices: Devices,
        registry: Callable[[], Registry],
        files: FileSystem,
        measure: Callable[[str], Measure],
    ) -> None:
        self._settings = settings
        self._devices = devices
        self._registry = registry
        self._files = files
        self._measure = measure
        self._turns: dict[str, asyncio.Lock] = {}  # one change of a slot at a time

    def models(self, call: calls.ModelList) -> r.ModelVersions:
        """Configured models, then versions; or one version's lineage and its decisions."""
        registry = self._registry()
        if call.name is not None:
            return r.ModelVersions(
                models=tuple(registry.lineage(call.name)),
                decisions=tuple(registry.decisions(call.name)),
            )
        return r.ModelVersions(models=(*self._configured(), *registry.list()))

    async def promote(self, process: Process, call: calls.ModelPromote) -> r.ModelVersion:
        """Have a version serve its slot, once the gate lets it.

        Raises: SyscallError: "unknown_model"; "invalid"; "refused" by the gate, saying which metric
        and by how much; "storage" for damaged files; "device" when no device can serve it; "busy"
        when another version was promoted meanwhile.
        """
        registry = self._registry()
        version = registry.get(call.name)
        slot = registry.slot_of(version, call.slot)
        self._check_slot(version, slot)
        own = tuple(self._readable(process, check) for check in call.checks)
        async with self._turns.setdefault(slot, asyncio.Lock()):
            current = registry.promoted(slot)
            if current == version.name:
                return registry.get(version.name)
            decision = await self._decide(call, version, slot, current, own)
            if registry.promoted(slot) != current:
                raise SyscallError(
                    "busy",
                    f"another version of {slot} was promoted while {call.name} was measured; "
                    "try again",
                    is_retryable=True,
                    slot=slot,
                )
            async with self._devices.changing(slot, version):
                return registry.promote(call.name, slot=slot, decision=decision)

    async def rollback(self, call: calls.ModelRollback) -> r.ModelVersions:
        """Undo the last promotion of a slot; the next call runs on what served before."""
        slot = call.base or self._devices.setting(None).base
        registry = self._registry()
        async with self._turns.setdefault(slot, asyncio.Lock()):
            before = registry.before(slot)
            async with self._devices.changing(
                slot, None if before is None else registry.get(before)
            ):
                return r.ModelVersions(models=tuple(registry.rollback(slot, reason=call.reason)))

    async def delete(self, call: calls.ModelDelete) -> r.Deleted:
        """Delete a version that nobody needs.

        Raises: SyscallError: "unknown_model"; "busy" naming who needs it; "storage".
        """
        freed = await asyncio.to_thread(self._registry().remove, call.name)
        return r.Deleted(name=call.name, freed_bytes=freed)

    async def export(self, process: Process, call: calls.ModelExport) -> r.Exported:
        """Write a version merged with its base, in an OS process of its own.

        Raises: SyscallError: "unknown_model"; "not_available" for what cannot be merged or written
        so; "invalid"; "storage".
        """
        from llmos.kernel.model_export import check_exportable, export

        registry = self._registry()
        version = registry.get(call.name)
        check_exportable(version, call)
        target = self._target(process, call)
        with registry.used([version.name], process.pid):
            base = await asyncio.to_thread(self._weights, version)
            weights = base
            if version.base in {one.name for one in registry.list()}:
                weights = await asyncio.to_thread(registry.load, version.base)
            folder = await asyncio.to_thread(registry.load, version.name)
            return await export(version, folder, weights, base, call, target)

    # --- promoting --------------------------------------------------------------------------------

    async def _decide(
        self,
        call: calls.ModelPromote,
        version: r.ModelVersion,
        slot: str,
        current: str | None,
        own: Sequence[GateCheck],
    ) -> r.Decision:
        """The gate's answer with its figures. Raises: SyscallError("refused"), which is kept."""
        gates = self._settings.gates
        checks = (*gates.get("*", ()), *gates.get(slot, ()), *own)
        figures = await judge(
            checks,
            version=version.name,
            current=current,
            measure=self._measure(version.base or slot),
            has_base=version.kind in SERVING_A_BASE,
        )
        binding = [one for one in figures if not one.holds and (one.is_safety or not call.force)]
        decision = r.Decision(
            slot=slot,
            action="promote",
            name=version.name,
            before=current,
            is_allowed=not binding,
            is_forced=call.force and not all(one.holds for one in figures),
            reason=call.reason,
            figures=figures,
            at=time.time(),
        )
        if binding:
            self._registry().refuse(decision)
            raise refusal(version.name, slot, binding)
        return decision

    def _check_slot(self, version: r.ModelVersion, slot: str) -> None:
        """A task model must not take the slot of a decoder, nor the name of another version.

        Whoever calls by the name would then get what has passed another gate, or none.
        """
        if version.kind in SERVING_A_BASE:
            return
        registry = self._registry()
        bases = {setting.base for setting in self._settings.models.values()}
        if slot in bases:
            raise SyscallError(
                "invalid",
                f"slot: {slot} is a base of language models, and {version.name} is a "
                f"{version.kind}; give it another slot",
                field="slot",
            )
        if slot != version.name and any(one.name == slot for one in registry.list()):
            raise SyscallError(
                "invalid", f"slot: {slot} is the name of a version; choose another", field="slot"
            )
        if registry.promoted(version.name) not in (None, version.name):
            raise SyscallError(
                "invalid",
                f"name: {version.name} is a slot that another version serves, so the two cannot "
                "be told apart; train it under another name",
                field="name",
            )

    def _readable(self, process: Process, check: GateCheck) -> GateCheck:
        return check.model_copy(update={"data": str(self._files.readable(process, check.data))})

    # --- what there is ----------------------------------------------------------------------------

    def _configured(self) -> list[r.ModelVersion]:
        found = [
            r.ModelVersion(
                name=setting.name,
                kind="model",
                base=setting.base,
                card={"driver": setting.driver, "source": setting.base},
            )
            for setting in self._settings.models.values()
        ]
        embedding = self._settings.embedding
        if embedding is not None:
            card = _embedding_card(embedding)
            found.append(r.ModelVersion(name=embedding.name, kind="embedding", card=card))
        return found

    # --- exporting --------------------------------------------------------------------------------

    def _target(self, process: Process, call: calls.ModelExport) -> Path:
        """Where an export goes; by default into a folder of the kernel's home."""
        if call.path is not None:
            return self._files.writable(process, call.path)
        ending = f".{call.quantize or 'F16'}.gguf" if call.format == "gguf" else ""
        return self._settings.home / "exports" / f"{call.name}{ending}"

    def _weights(self, version: r.ModelVersion) -> Path:
        """The weights that a version began from. Raises: SyscallError("not_available")."""
        base, known = version.base, {one.name: one for one in self._registry().list()}
        while base in known:  # full weights that were trained here
            if known[base].base == base:  # from nothing
                return self._registry().load(base)
            base = known[base].base
        for setting in self._settings.models.values():
            if setting.base == base and setting.weights is not None:
                return setting.weights()
        raise SyscallError(
            "not_available",
            f"{version.name} cannot be exported: no configured model has the weights of its base "
            f"{version.base}",
            name=version.name,
        )


def _embedding_card(embedding: EmbeddingSetting) -> JsonObject:
    """What is known of the embedding model; why nothing is, while it is not on this machine."""
    try:
        return {"dimensions": embedding.width()}
    except SyscallError as problem:
        return {"problem": str(problem)}
