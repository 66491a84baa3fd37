"""What the kernel asks of a device that generates, wherever its model is.

`Engine` drives a model on this machine by a thread and steps, `Outbound` one on another machine by
requests. Who submits a generation need not know which it is; `model.abilities` says what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from llmos.drivers.contract import Allocation, ModelInfo
from llmos.kernel.generation import Generation
from llmos.syscalls.content import Message
from llmos.syscalls.results import DeviceInfo, ToolSpec

DeviceState = Literal["closed", "opening", "ready", "down"]


class Device(Protocol):
    """A device with its queue. Event loop only, but for `tokenize` and `render`."""

    @property
    def name(self) -> str: ...

    @property
    def state(self) -> DeviceState: ...

    @property
    def model(self) -> ModelInfo: ...

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text; any thread. Raises: SyscallError("device")."""
        ...

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[ToolSpec] = (), prefix: str = ""
    ) -> list[int]:
        """Token ids of a conversation; any thread.

        Raises: SyscallError("invalid") when the model's template refuses it, or ("device").
        """
        ...

    async def start(self) -> None:
        """Open the device. Raises: DeviceError or SyscallError; it is then down."""
        ...

    async def opened(self) -> None:
        """Wait while the device is opening, also when whoever started it has gone."""
        ...

    async def stop(self) -> None:
        """End every generation and close the device."""
        ...

    def has_adapter(self, name: str) -> bool:
        """Whether an adapter is attached."""
        ...

    async def attach(self, name: str, path: Path) -> None:
        """Attach an adapter, unless it is. Raises: DeviceError or SyscallError."""
        ...

    def submit(self, generation: Generation) -> None:
        """Queue a generation. Raises: SyscallError when it is refused."""
        ...

    def cancel(self, generation: Generation) -> None:
        """End a generation without a finish reason."""
        ...

    def hold(self, pid: int, *, is_held: bool) -> None: ...

    def renice(self, pid: int, nice: int) -> None: ...

    def end_domain(self, domain: str) -> None:
        """Free cached KV that nobody can ask for any more."""
        ...

    def info(self) -> DeviceInfo: ...

    def allocations(self) -> list[Allocation]: ...
