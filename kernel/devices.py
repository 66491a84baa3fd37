"""The devices: engines by model name, opened when first needed, reopened after a failure.

A call that names a class of models goes to the member that will finish it first (`router.py`); one
that names a model goes elsewhere only while that model's device is down and another has the same
weights. Also attaches adapters: a generation that names one, or whose base has a promoted one,
finds it loaded on its device. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Hashable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from pathlib import Path
from urllib.parse import quote

from llmos.drivers.contract import Allocation, DeviceError
from llmos.drivers.lora_gguf import gguf_adapter
from llmos.kernel.budget import Budget, Prices
from llmos.kernel.clock import Clock
from llmos.kernel.device import Device
from llmos.kernel.encoders import Encoders
from llmos.kernel.engine import Engine
from llmos.kernel.outbound import Outbound
from llmos.kernel.policies import make_policy
from llmos.kernel.router import Ask, Router, Site, Used
from llmos.kernel.settings import ANY, ModelSetting, Settings
from llmos.kernel.swaps import Swaps
from llmos.kernel.trace import Tracer
from llmos.memory.registry import Registry
from llmos.memory.spending import Spending
from llmos.memory.tiers import Tiers, share_of_memory
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import DeviceInfo, LedgerEntry, ModelVersion

# A device that could not be opened is not tried again for this long while another can serve.
DOWN_S = 10.0
# Until it was measured how long a device takes to open.
_OPENING_S, _CONNECTING_S = 20.0, 0.5
_SLOTS = 16


class Devices:
    def __init__(
        self, settings: Settings, *, registry: Callable[[], Registry], clock: Clock, tracer: Tracer
    ) -> None:
        self.encoders = Encoders(settings, clock=clock, tracer=tracer)
        self._settings = settings
        self._registry = registry
        self._clock = clock
        self._tracer = tracer
        self._engines: dict[str, Device] = {}
        self._router = Router()
        self._opening_s: dict[str, float] = {}
        self._failed: dict[str, tuple[float, SyscallError]] = {}  # when it could not be opened
        self._opening: dict[str, asyncio.Lock] = {}
        self._swaps = Swaps(
            settings,
            self._engines,
            registry=registry,
            clock=clock,
            open=self._open_beside,
            attach=self._take,
        )
        self._spending = Spending(settings.home)
        self._is_stopped = False
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

    def candidates(
        self, model: str | None, *, may_use: Callable[[str], bool] = lambda name: True
    ) -> tuple[str, ...]:
        """The models that can serve a name: the members of a class, or a model and its stand-ins.

        `may_use` says which stand-ins the caller may use; the name itself has been checked.
        Raises: SyscallError("unknown_model").
        """
        if model == ANY and ANY not in self._settings.models:
            return tuple(self._settings.models)
        if model in self._settings.classes:
            return self._settings.classes[model]
        setting = self.setting(model)
        same = (one for one in self._settings.models.values() if one.base == setting.base)
        others = (one.name for one in same if one.name != setting.name and may_use(one.name))
        return (setting.name, *others)

    def with_adapter(self, names: Sequence[str], adapter: str | None) -> Sequence[str]:
        """Those of the models that can take an adapter; all where none can, to say why not.

        Raises: SyscallError("unknown_model").
        """
        if adapter is None:
            return names
        base = self._registry().get(adapter).base
        models = self._settings.models
        fitting = [n for n in names if models[n].base == base and models[n].remote is None]
        return fitting or names

    def is_class(self, model: str | None) -> bool:
        """Whether a name stands for any of several models."""
        is_any = model == ANY and ANY not in self._settings.models
        return is_any or model in self._settings.classes

    def stands_in(self, one: str, other: str) -> bool:
        """Whether two models have the same weights."""
        return self.setting(one).base == self.setting(other).base

    async def choose(
        self, model: str | None, names: Collection[str], ask: Ask | None = None
    ) -> Device:
        """An open device among `names`: of a class the one that will finish first, else in order.

        Raises: SyscallError saying why the first one cannot be opened, when none can.
        """
        order = list(names)
        if self.is_class(model):
            order = self._router.order(self._sites(names), ask or Ask(0, 0, 1))
        order.sort(key=self._is_down)
        first: SyscallError | None = None
        for name in order:
            try:
                return await self._ready(name)
            except SyscallError as problem:
                first = first or problem
        assert first is not None, "no model can serve a name that is known"
        raise first

    async def engine(self, model: str | None) -> Device:
        """The engine of a model, opened if need be.

        Raises: SyscallError("unknown_model"), or SyscallError("device") saying why it is down.
        """
        return await self.choose(
            model, self.candidates(model)[: None if self.is_class(model) else 1]
        )

    def began(self, device: Device, key: Hashable, ask: Ask) -> None:
        """A device was given a generation, for later predictions."""
        sites = self._sites(self._settings.models)
        self._router.began(self._site(device.name), key, ask, sites)

    def ended(self, device: Device, key: Hashable, used: Used | None) -> None:
        """A generation is over; `used` None when it failed."""
        self._router.ended(device.name, key, used)

    def _is_down(self, name: str) -> bool:
        failed = self._failed.get(name)
        return failed is not None and self._clock.now() < failed[0] + DOWN_S

    def _sites(self, names: Collection[str]) -> list[Site]:
        return [self._site(name) for name in names]

    def _site(self, name: str) -> Site:
        setting = self._settings.models[name]
        processor = name if setting.remote is not None else setting.processor
        engine = self._engines.get(name)
        if engine is not None and engine.state == "ready":
            return Site(name, engine.model.sequences, processor)
        guess_s = _OPENING_S if setting.remote is None else _CONNECTING_S
        return Site(name, _SLOTS, processor, self._opening_s.get(name, guess_s))

    async def _ready(self, name: str) -> Device:
        """The engine of one model, opened if need be."""
        setting = self._settings.models[name]
        engine = self._engines.get(setting.name)
        if engine is not None and engine.state == "ready":
            self._swaps.follow(setting, self._swaps.wanted(setting))
            return engine
        lock = self._opening.setdefault(setting.name, asyncio.Lock())
        asked_s = self._clock.now()
        async with lock:
            failed = self._failed.get(name)
            if failed is not None and failed[0] > asked_s:  # while this one waited
                raise SyscallError.from_value(failed[1].value())
            if self._is_stopped:
                raise SyscallError("device", f"device {setting.name} is closed: the kernel stops")
            engine = self._engines.get(setting.name)
            if engine is not None and engine.state == "opening":
                # It reopens after a failure, or who had it opened was killed meanwhile.
                await engine.opened()
            if engine is None or engine.state != "ready":
                engine = await self._open(setting)
        return engine

    @contextmanager
    def serving(
        self, adapter: str | None, engine: Device, pid: int
    ) -> Generator[ModelVersion | None]:
        """What a generation of a process runs with on an engine, for a block that it lasts.

        Gives the adapter; None where the weights of the engine are all that is asked for. Without
        `adapter` it is the promoted one, if there is one. Neither the engine closes meanwhile nor
        can the versions be deleted.
        Raises: SyscallError("unknown_model"), or "invalid" for what is no adapter of the engine's
        weights, or "not_available" where the driver takes none.
        """
        weights = self._swaps.weights(engine)
        version = self._adapter(adapter, engine, weights or self.setting(engine.name).base)
        names = [name for name in (weights, version and version.name) if name is not None]
        with self._swaps.on(engine):
            if not names:
                yield None
                return
            with self._registry().used(names, pid):
                yield version

    async def attach(self, version: ModelVersion, engine: Device) -> str:
        """Attach an adapter to an engine, unless it is; returns the key of its weights there.

        The key differs where the files do, so that neither a device nor cached KV takes a version
        for an earlier one of the same name. Raises: SyscallError("device"), ("storage") for damaged
        files.
        """
        key = f"{version.name}@{version.digest[:12]}" if version.digest else version.name
        if not engine.has_adapter(key):
            try:
                path = await asyncio.to_thread(self._adapter_files, version.name, engine.name)
                await engine.attach(key, path)
            except DeviceError as problem:
                raise SyscallError(
                    "device",
                    f"adapter {version.name} could not be attached to {engine.name}: {problem}",
                    device=engine.name,
                ) from problem
        return key

    def _adapter_files(self, name: str, model: str) -> Path:
        """An adapter's folder, with the form in it that the model's driver reads; worker thread.

        Raises: SyscallError("storage"); DeviceError when it has no such form.
        """
        folder = self._registry().load(name)
        setting = self._settings.models[model]
        if setting.driver == "llama_cpp" and setting.weights is not None:
            gguf_adapter(folder, setting.weights())  # here, so that the device's thread need not
        return folder

    def _adapter(self, adapter: str | None, engine: Device, base: str) -> ModelVersion | None:
        if adapter is None:
            version = self._registry().serving(base)
            if version is None or version.kind != "adapter":
                return None
        else:
            version = self._registry().get(adapter)
            if version.name == base:
                return None  # the engine has its weights
        if version.kind != "adapter":
            raise SyscallError(
                "invalid",
                f"adapter: {version.name} is a version of kind {version.kind} and no adapter",
                field="adapter",
            )
        if version.base != base:
            raise SyscallError(
                "invalid",
                f"adapter: {version.name} was trained on {version.base}, not on {base}",
                field="adapter",
            )
        if not engine.model.abilities.can_attach:
            if adapter is None:
                return None
            raise SyscallError(
                "not_available", f"driver {engine.model.driver} cannot attach adapters"
            )
        return version

    def changing(
        self, slot: str, version: ModelVersion | None
    ) -> AbstractAsyncContextManager[None]:
        """Have the open devices of a base ready for what will serve it once the block is done.

        Raises: as `Swaps.changing`.
        """
        return self._swaps.changing(slot, version)

    def hold(self, pid: int, *, is_held: bool) -> None:
        """Stop or continue a process's generations everywhere."""
        if is_held:
            self._held_pids.add(pid)
        else:
            self._held_pids.discard(pid)
        for engine in self._engines.values():
            engine.hold(pid, is_held=is_held)

    def expect_urgent(self) -> None:
        """Have local devices keep their steps short for a while: an urgent process has started."""
        for engine in self._engines.values():
            if isinstance(engine, Engine):
                engine.expect_urgent()

    def renice(self, pid: int, nice: int) -> None:
        """Pass a new priority to the engines."""
        for engine in self._engines.values():
            engine.renice(pid, nice)

    def end_domain(self, domain: str) -> None:
        """Free cached KV that nobody can ask for any more, everywhere."""
        for engine in self._engines.values():
            engine.end_domain(domain)

    def are_computing(self) -> bool:
        """Whether a model on this machine has work now."""
        return any(isinstance(one, Engine) and one.is_busy for one in self._engines.values())

    @asynccontextmanager
    async def resting(self, most_s: float) -> AsyncGenerator[None]:
        """While entered, and `most_s` at most, no model on this machine starts a step."""
        busy = [one for one in self._engines.values() if isinstance(one, Engine) and one.is_busy]
        async with AsyncExitStack() as stack:
            await asyncio.gather(
                *(stack.enter_async_context(engine.resting(most_s)) for engine in busy)
            )
            yield

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
        found += self.encoders.infos()
        return tuple(found)

    def ledger(self) -> list[LedgerEntry]:
        """The large allocations of every open device."""
        owners: dict[str, list[Allocation]] = {
            name: engine.allocations() for name, engine in self._engines.items()
        }
        owners |= self.encoders.allocations()
        return [
            LedgerEntry(owner=owner, what=one.what, bytes=one.bytes)
            for owner, allocations in owners.items()
            for one in allocations
        ]

    async def stop(self) -> None:
        """Close every device; none opens after that."""
        self._is_stopped = True
        await self._swaps.stop()
        await asyncio.gather(*(engine.stop() for engine in self._engines.values()))
        self._spending.close()
        await self.encoders.stop()

    async def _open(self, setting: ModelSetting) -> Device:
        broken = self._engines.get(setting.name)
        if isinstance(broken, Outbound):
            # it finds its server again, and disturbs nothing under way
            return await self._start(setting, broken)
        version = self._swaps.wanted(setting)
        try:
            files = await self._swaps.files(setting, version)
            engine = self._make(setting, files)
        except SyscallError as problem:
            self._failed[setting.name] = (self._clock.now(), problem)
            raise
        self._engines[setting.name] = engine
        self._swaps.made(engine, version)
        if broken is not None:
            await broken.stop()
        return await self._start(setting, engine)

    async def _open_beside(self, setting: ModelSetting, files: Path | None) -> Device:
        """A device of a model beside the one that serves, which it may replace."""
        engine = self._make(setting, files)
        try:
            return await self._start(setting, engine)
        finally:
            self._failed.pop(setting.name, None)  # the one that serves goes on

    async def _start(self, setting: ModelSetting, engine: Device) -> Device:
        for pid in self._held_pids:
            engine.hold(pid, is_held=True)
        started = self._clock.now()
        try:
            await engine.start()
        except DeviceError as problem:
            error = SyscallError(
                "device",
                f"device {setting.name} could not be opened: {problem}",
                device=setting.name,
            )
            self._failed[setting.name] = (self._clock.now(), error)
            raise error from problem
        except SyscallError as problem:  # its file is not here, say
            self._failed[setting.name] = (self._clock.now(), problem)
            raise
        ended = self._clock.now()
        self._opening_s[setting.name] = ended - started
        self._failed.pop(setting.name, None)
        self._tracer.span(
            "open", "device", started_s=started, ended_s=ended, pid=0, track=setting.name
        )
        return engine

    def _make(self, setting: ModelSetting, files: Path | None = None) -> Device:
        """A device with a model's own weights, or with those in `files`."""
        remote = setting.remote
        if remote is not None:
            return Outbound(
                setting.name,
                remote.connect(),
                policy=make_policy(self._settings.policy, self._settings.scheduling),
                clock=self._clock,
                concurrency=remote.concurrency,
                budget=Budget(setting.name, remote.prices or Prices(), self._spending),
                max_queued=self._settings.max_queued,
            )
        open_driver = setting.open
        if files is not None:
            assert setting.open_at is not None
            open_driver = partial(setting.open_at, files)
        assert open_driver is not None
        return Engine(
            setting.name,
            open_driver,
            policy=make_policy(self._settings.policy, self._settings.scheduling),
            clock=self._clock,
            tracer=self._tracer,
            max_queued=self._settings.max_queued,
            limits=self._settings.limits,
            adapters=self._settings.adapters,
            tiers=self._tiers(setting, is_own=files is None),
            open_draft=setting.open_draft,
        )

    def _tiers(self, setting: ModelSetting, *, is_own: bool) -> Tiers:
        """Where a device's KV goes that it has no room for.

        On the disk only that of the model's own weights: two devices must not share the folder.
        """
        kv = self._settings.kv
        return Tiers(
            host_bytes=share_of_memory() if kv.host_bytes is None else kv.host_bytes,
            disk_bytes=kv.disk_bytes if is_own else 0,
            root=self._settings.home / "kv" / quote(setting.name, safe=""),
            now=self._clock.now,
        )

    async def _take(self, engine: Device, version: ModelVersion) -> None:
        """Have a device hold an adapter before it serves. Raises: SyscallError("device")."""
        if engine.model.abilities.can_attach:
            await self.attach(version, engine)
