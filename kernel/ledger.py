"""The memory ledger: who holds what of this process's memory.

Drivers and services name what they allocate; what Python and the loaded libraries take is read from
the process's own map (Linux; elsewhere only what is named by somebody is listed).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import psutil

from llmos.drivers.opening import module_allocations
from llmos.syscalls.results import LedgerEntry

_MAP = Path("/proc/self/smaps")


class Resident(NamedTuple):
    """Resident bytes by kind: code and data of libraries, and memory that no file backs."""

    libraries: int
    anonymous: int


def resident() -> Resident:
    """What this process's map says now."""
    if not _MAP.exists():
        return Resident(0, 0)
    libraries = anonymous = 0
    is_library = False
    for line in _MAP.read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):  # the head of a mapping: range, rights, ..., path
            path = line[73:]
            is_library = ".so" in path or "/bin/" in path
        elif name == "Rss:" and is_library:
            libraries += int(rest.split()[0]) * 1024
        elif name == "Anonymous:" and not is_library:
            anonymous += int(rest.split()[0]) * 1024
    return Resident(libraries, anonymous)


class Ledger:
    """Made at boot, so that what Python itself holds is known.

    In a process that had a kernel before, what that one freed and Python kept counts as held at
    boot, although a new kernel uses it again.
    """

    def __init__(self) -> None:
        modules = sum(one.bytes for one in module_allocations())
        self._at_boot_bytes = max(0, resident().anonymous - modules)

    def entries(self, named: Iterable[LedgerEntry]) -> tuple[LedgerEntry, ...]:
        """What is held now, the largest first."""
        now = resident()
        found = [
            LedgerEntry(owner="python", what="objects at boot", bytes=self._at_boot_bytes),
            LedgerEntry(owner="python", what="libraries", bytes=now.libraries),
            *(LedgerEntry(owner="python", what=w, bytes=b) for w, b in module_allocations()),
            *named,
        ]
        return tuple(sorted((e for e in found if e.bytes), key=lambda e: -e.bytes))


def resident_bytes() -> int:
    """The resident size of this process."""
    size: int = psutil.Process().memory_info().rss
    return size
