"""The devices: engines by model name, opened when first needed, reopened after a failure.

Also attaches adapters: a generation that names one, or whose base has a promoted one, finds it
loaded on its device. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from llmos.drivers.contract import Allocation, DeviceError
from llmos.kernel.clock import Clock
from llmos.kernel.embedder import Embedder
from llmos.kernel.engine import Engine
from llmos.kernel.policies import make_policy
from llmos.kernel.settings import ModelSetting, Settings
from llmos.kernel.trace import Tracer
from llmos.memory.registry import Registry
from llmos.memory.tiers import Tiers, share_of_memory
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import DeviceInfo, LedgerEntry


class Devices:
    def __init__(
        self, settings: Settings, *, registry: Callable[[], Registry], clock: Clock, tracer: Tracer
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._clock = clock
        self._tracer = tracer
        self._engines: dict[str, Engine] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._is_stopped = False
        self._embedder: Embedder | None = None
        self._held_pids: set[int] = set()

    def setting(self, model: str | None) -> ModelSetting:
        """What is configured under a name. Raises: SyscallError("unknown_model")."""
        name = model or self._settings.default_model
        if name is None or name not in self._settings.models:
            known = sorted(self._settings.models)
            raise SyscallError(
                "unknown_model",
                f"no model is configured as {name!r}; known are {', '.join(known) or 'none'}",
                name=name,
                known=known,
            )
        return self._settings.models[name]

    async def engine(self, model: str | None) -> Engine:
        """The engine of a model, opened if need be.

        Raises: SyscallError("unknown_model"), or SyscallError("device") saying why it is down.
        """
        setting = self.setting(model)
        engine = self._engines.get(setting.name)
        if engine is not None and engine.state == "ready":
            return engine
        lock = self._opening.setdefault(setting.name, asyncio.Lock())
        async with lock:
            if self._is_stopped:
                raise SyscallError("device", f"device {setting.name} is closed: the kernel stops")
            engine = self._engines.get(setting.name)
            if engine is not None and engine.state == "opening":
                # It reopens after a failure, or who had it opened was killed meanwhile.
                await engine.opened()
            if engine is None or engine.state != "ready":
                engine = await self._open(setting)
        return engine

    async def adapter(self, model: str | None, adapter: str | None, engine: Engine) -> str | None:
        """The adapter that a generation runs with, attached to its engine.

        `adapter` None means the promoted one of the model's base, if there is one.
        Raises: SyscallError("unknown_model") or SyscallError("device").
        """
        setting = self.setting(model)
        is_asked_for = adapter is not None
        name = adapter or self._registry().promoted(setting.base)
        if name is None:
            return None
        version = self._registry().get(name)
        if version.base != setting.base or version.path is None:
            raise SyscallError(
                "invalid",
                f"adapter: {name} was trained on {version.base}, not on {setting.base}",
                field="adapter",
            )
        if not engine.model.abilities.can_attach:
            if not is_asked_for:
                return None
            raise SyscallError(
                "not_available", f"driver {engine.model.driver} cannot attach adapters"
            )
        await self._attach(engine, name, Path(version.path))
        return name

    async def embedder(self) -> Embedder:
        """The embedding device, opened if need be."""
        setting = self._settings.embedding
        if setting is None:
            raise SyscallError("not_available", "no embedding model is configured")
        if self._embedder is None or self._embedder.is_down:
            self._embedder = Embedder(setting.name, setting.open, self._clock, self._tracer)
        await self._embedder.start()
        return self._embedder

    def hold(self, pid: int, *, is_held: bool) -> None:
        """Stop or continue a process's generations everywhere."""
        if is_held:
            self._held_pids.add(pid)
        else:
            self._held_pids.discard(pid)
        for engine in self._engines.values():
            engine.hold(pid, is_held=is_held)

    def renice(self, pid: int, nice: int) -> None:
        """Pass a new priority to the engines."""
        for engine in self._engines.values():
            engine.renice(pid, nice)

    def infos(self) -> tuple[DeviceInfo, ...]:
        """Every configured device, opened or not."""
        found: list[DeviceInfo] = []
        for name, setting in self._settings.models.items():
            engine = self._engines.get(name)
            if engine is not None:
                found.append(
                    engine.info().model_copy(update={"name": name, "driver": setting.driver})
                )
            else:
                found.append(
                    DeviceInfo(name=name, driver=setting.driver, model=setting.base, state="closed")
                )
        embedding = self._settings.embedding
        if self._embedder is not None:
            found.append(self._embedder.info())
        elif embedding is not None:
            found.append(
                DeviceInfo(
                    name=embedding.name, driver="embedding", model=embedding.name, state="closed"
                )
            )
        return tuple(found)

    def ledger(self) -> list[LedgerEntry]:
        """The large allocations of every open device."""
        owners: dict[str, list[Allocation]] = {
            name: engine.allocations() for name, engine in self._engines.items()
        }
        if self._embedder is not None:
            owners[self._embedder.name] = self._embedder.allocations()
        return [
            LedgerEntry(owner=owner, what=one.what, bytes=one.bytes)
            for owner, allocations in owners.items()
            for one in allocations
        ]

    async def stop(self) -> None:
        """Close every device; none opens after that."""
        self._is_stopped = True
        await asyncio.gather(*(engine.stop() for engine in self._engines.values()))
        if self._embedder is not None:
            await self._embedder.stop()

    async def _open(self, setting: ModelSetting) -> Engine:
        engine = Engine(
            setting.name,
            setting.open,
            policy=make_policy(self._settings.policy, self._settings.scheduling),
            clock=self._clock,
            tracer=self._tracer,
            max_queued=self._settings.max_queued,
            tiers=self._tiers(setting),
        )
        broken = self._engines.get(setting.name)
        self._engines[setting.name] = engine
        for pid in self._held_pids:
            engine.hold(pid, is_held=True)
        if broken is not None:
            await broken.stop()
        started = self._clock.now()
        try:
            await engine.start()
        except DeviceError as problem:
            raise SyscallError(
                "device",
                f"device {setting.name} could not be opened: {problem}",
                device=setting.name,
            ) from problem
        self._tracer.span(
            "open",
            "device",
            started_s=started,
            ended_s=self._clock.now(),
            pid=0,
            track=setting.name,
        )
        return engine

    def _tiers(self, setting: ModelSetting) -> Tiers:
        """Where a device's KV goes that it has no room for."""
        kv = self._settings.kv
        return Tiers(
            host_bytes=share_of_memory() if kv.host_bytes is None else kv.host_bytes,
            disk_bytes=kv.disk_bytes,
            root=self._settings.home / "kv" / quote(setting.name, safe=""),
            now=self._clock.now,
        )

    async def _attach(self, engine: Engine, name: str, path: Path) -> None:
        try:
            await engine.attach(name, path)
        except DeviceError as problem:
            raise SyscallError(
                "device",
                f"adapter {name} could not be attached to {engine.name}: {problem}",
                device=engine.name,
            ) from problem
