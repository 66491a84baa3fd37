"""Which adapters a device holds: brought when a sequence needs them, detached by their last use.

Hundreds may be known; as many are attached as the limits let. Never goes one that a live sequence
computes with. Owns the limits and the order of use; the driver owns the weights, and whoever opens
one says how cached KV of an adapter is let go, which no driver detaches under. Engine thread only,
but for `names`.

Source: S-LoRA, Sheng et al. 2023 (arXiv 2311.03285), which keeps adapters in host memory and brings
those of the running batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from llmos.drivers.contract import LanguageModel

_WEIGHTS = "adapter_model.safetensors"


class AdapterLimits(NamedTuple):
    """How many adapters one device holds, and of how many bytes together."""

    adapters: int = 32
    bytes: int = 1024 * 2**20


@dataclass(slots=True)
class _Slot:
    bytes: int
    used: int  # counts up with every use


class AdapterSlots:
    """The adapters of one device. Those that are known stay so when its driver is opened anew."""

    def __init__(self, limits: AdapterLimits) -> None:
        self.names: frozenset[str] = frozenset()  # attached; replaced whole, for any thread
        self._limits = limits
        self._paths: dict[str, Path] = {}
        self._slots: dict[str, _Slot] = {}
        self._uses = 0
        self._driver: LanguageModel | None = None
        self._let_go: Callable[[str], None] = lambda name: None

    def opened(self, driver: LanguageModel, *, let_go: Callable[[str], None]) -> None:
        """A driver was opened, which holds none. `let_go` frees the KV of an adapter."""
        self._driver, self._let_go = driver, let_go
        self._slots.clear()
        self._publish()

    def know(self, name: str, path: Path) -> None:
        """Note where an adapter's files are."""
        self._paths[name] = path

    def bring(self, name: str, *, in_use: Collection[str]) -> bool:
        """Have a known adapter attached; False when those in use leave no room for it.

        An adapter that is alone over the limit of bytes is attached alone.
        Raises: DeviceError; what was evicted for it is gone then.
        """
        slot = self._slots.get(name)
        if slot is None:
            assert self._driver is not None
            path = self._paths[name]
            if not self._make_room(_file_bytes(path), in_use):
                return False
            self._driver.attach(name, path)
            slot = self._slots[name] = _Slot(self._held_bytes(name), 0)
            self._publish()
        self._uses += 1
        slot.used = self._uses
        return True

    def _make_room(self, size_bytes: int, in_use: Collection[str]) -> bool:
        """Detach what was used longest ago until one more of this size fits, if that can be."""
        staying = [slot for name, slot in self._slots.items() if name in in_use]
        if not self._has_room(staying, size_bytes):
            return False
        for name in sorted(self._slots, key=lambda name: self._slots[name].used):
            if self._has_room(self._slots.values(), size_bytes):
                break
            if name not in in_use:
                self._detach(name)
        return True

    def _has_room(self, slots: Collection[_Slot], size_bytes: int) -> bool:
        held_bytes = sum(slot.bytes for slot in slots)
        return not slots or (
            len(slots) < self._limits.adapters and held_bytes + size_bytes <= self._limits.bytes
        )

    def _detach(self, name: str) -> None:
        assert self._driver is not None
        self._let_go(name)
        self._driver.detach(name)
        del self._slots[name]
        self._publish()

    def _held_bytes(self, name: str) -> int:
        assert self._driver is not None
        sizes = {one.what: one.bytes for one in self._driver.allocations()}
        return sizes.get(f"adapter {name}", 0)

    def _publish(self) -> None:
        self.names = frozenset(self._slots)


def _file_bytes(path: Path) -> int:
    """About what an adapter takes, before it is attached; a missing file is found by the driver."""
    file = path / _WEIGHTS if path.is_dir() else path
    return file.stat().st_size if file.is_file() else 0
