"""Which weights each open device has, and how they are exchanged while agents go on.

The promoted version of a base may be an adapter, which a device takes beside the weights it has,
or full weights, which need a device of their own: it opens beside the old one, calls go to it from
the moment that the registry says so, and the old one closes once the last of its sequences has
ended. A promotion by another process is followed as soon as the new weights are open.

Owns the count of who is on a device. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil

from llmos.drivers.contract import Allocation
from llmos.kernel.clock import Clock
from llmos.kernel.device import Device
from llmos.kernel.settings import ModelSetting, Settings
from llmos.memory.registry import Registry
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ModelVersion

log = logging.getLogger("llmos.kernel")

# How long a device that nobody is on stays open: who looked it up to count tokens may still ask.
LINGER_S = 5.0

Open = Callable[[ModelSetting, Path | None], Awaitable[Device]]
Attach = Callable[[Device, ModelVersion], Awaitable[None]]


class Swaps:
    """`open` starts a device, with other weights where it is given a path; `attach` an adapter."""

    def __init__(
        self,
        settings: Settings,
        engines: dict[str, Device],
        *,
        registry: Callable[[], Registry],
        clock: Clock,
        open: Open,
        attach: Attach,
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._registry = registry
        self._clock = clock
        self._open = open
        self._attach = attach
        self._weights: dict[Device, str] = {}  # of the devices that have others than their own
        self._on: Counter[Device] = Counter()
        self._retiring: set[Device] = set()
        self._following: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, str | None] = {}  # the weights that a device could not follow to
        self._closing: set[asyncio.Task[None]] = set()

    def wanted(self, setting: ModelSetting) -> str | None:
        """The version whose full weights a model should have; None: its own."""
        if setting.remote is not None:
            return None
        serving = self._registry().serving(setting.base)
        return serving.name if serving is not None and serving.kind == "full" else None

    async def files(self, setting: ModelSetting, version: str | None) -> Path | None:
        """The files of full weights as the model's driver reads them; None for the model's own.

        Raises: SyscallError: "storage" when they are damaged, "not_available" where the driver
        takes no others.
        """
        if version is None:
            return None
        if setting.open_at is None:
            raise SyscallError(
                "not_available",
                f"driver {setting.driver} opens its own weights only; {version} cannot serve there",
                device=setting.name,
            )
        folder = await asyncio.to_thread(self._registry().load, version)
        if setting.driver != "llama_cpp":
            return folder
        from llmos.kernel.model_export import gguf_of_full

        assert setting.weights is not None
        return await gguf_of_full(folder, await asyncio.to_thread(setting.weights))

    def made(self, device: Device, version: str | None) -> None:
        """A device was made to have the weights of a version."""
        if version is not None:
            self._weights[device] = version

    def weights(self, device: Device) -> str | None:
        """The version whose full weights a device has; None: the model's own."""
        return self._weights.get(device)

    @contextmanager
    def on(self, device: Device) -> Generator[None]:
        """Be on a device for this block: it does not close before."""
        self._on[device] += 1
        try:
            yield
        finally:
            self._on[device] -= 1
            if not self._on[device]:
                del self._on[device]
                self._close_if_left(device)

    @asynccontextmanager
    async def changing(self, slot: str, version: ModelVersion | None) -> AsyncGenerator[None]:
        """Have the open devices of a base ready for what will serve it once the block is done.

        `version` None is the base itself. When the block raises, all is as it was.
        Raises: SyscallError: "not_available" or "device" when a device cannot take the version or
        has no memory for it, "storage" for damaged files.
        """
        fresh: dict[str, Device] = {}
        weights = version.name if version is not None and version.kind == "full" else None
        settings = [
            setting
            for setting in self._settings.models.values()
            if setting.base == slot and setting.remote is None
        ]
        try:
            for setting in settings:
                engine = self._engines.get(setting.name)
                if engine is None or engine.state != "ready":
                    continue
                if self._weights.get(engine) != weights:
                    engine = fresh[setting.name] = await self._beside(setting, engine, weights)
                if version is not None and version.kind == "adapter":
                    await self._attach(engine, version)
            yield
        except BaseException:
            for engine in fresh.values():
                self._close(engine)
            raise
        for name, engine in fresh.items():
            self._exchange(name, engine)

    def follow(self, setting: ModelSetting, wanted: str | None) -> None:
        """Bring a device to the weights that another process has promoted; calls go on meanwhile.

        What cannot be followed is tried again when something else is promoted.
        """
        name = setting.name
        if self._weights.get(self._engines[name]) == wanted or name in self._following:
            return
        if name in self._failed and self._failed[name] == wanted:
            return
        task = asyncio.create_task(self._follow(setting, wanted))
        self._following[name] = task
        task.add_done_callback(lambda _: self._following.pop(name, None))

    async def stop(self) -> None:
        """Close the devices that are on their way out, and follow nothing any more."""
        for task in list(self._following.values()):
            task.cancel()
        await asyncio.gather(*self._following.values(), return_exceptions=True)
        await asyncio.gather(*(device.stop() for device in self._retiring), *self._closing)

    # --- internals --------------------------------------------------------------------------------

    async def _follow(self, setting: ModelSetting, wanted: str | None) -> None:
        version = None if wanted is None else self._registry().get(wanted)
        try:
            async with self.changing(setting.base, version):
                pass
        except SyscallError as problem:
            self._failed[setting.name] = wanted
            log.warning(
                "%s stays on %s, because %s cannot serve: %s",
                setting.name,
                self._weights.get(self._engines[setting.name]) or setting.base,
                wanted or setting.base,
                problem,
            )

    async def _beside(self, setting: ModelSetting, engine: Device, version: str | None) -> Device:
        """A device with other weights beside the one that serves."""
        path = await self.files(setting, version)
        needed = sum(map(_size, engine.allocations()))
        free = psutil.virtual_memory().available
        if setting.processor == "cpu" and needed > free:
            raise SyscallError(
                "device",
                f"{version or setting.base} does not fit beside what {setting.name} serves now: "
                f"it needs {needed:,} bytes and {free:,} are free; close other models, or give "
                "this one fewer sequences",
                device=setting.name,
                needed_bytes=needed,
                free_bytes=free,
            )
        fresh = await self._open(setting, path)
        self.made(fresh, version)
        return fresh

    def _exchange(self, name: str, engine: Device) -> None:
        old = self._engines[name]
        self._engines[name] = engine
        self._failed.pop(name, None)
        self._retiring.add(old)
        self._close_if_left(old)

    def _close_if_left(self, device: Device) -> None:
        if device in self._retiring and not self._on[device]:
            self._clock.call_later(LINGER_S, lambda: self._retire(device))

    def _retire(self, device: Device) -> None:
        if device in self._retiring and not self._on[device]:
            self._retiring.discard(device)
            self._close(device)

    def _close(self, device: Device) -> None:
        self._weights.pop(device, None)
        task = asyncio.create_task(device.stop())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _size(one: Allocation) -> int:
    """What a second device of the kind would take of it."""
    return 0 if one.what.startswith("adapter ") or one.what == "swapped_kv" else one.bytes
