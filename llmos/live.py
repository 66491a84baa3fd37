"""Live pictures of the kernel: what `top` shows, and the demo while it runs.

Looks a few times a second through the same calls as everybody; draws only when a person sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from llmos import tables
from llmos.syscalls.results import KernelInfo, ProcessInfo, ProcessState
from llmos.terminal import Terminal

if TYPE_CHECKING:
    from llmos.agents.handle import OS

REFRESH_S = 0.25
_LEAVE_KEYS = frozenset({"q", "Q", "c-c", "c-d", "escape"})
_OTHER_LINES = 6  # headline, two table heads, two blank lines, "and N more"
_ALL = 1_000_000
_LEAST_ROWS = 5
# Who does something now is shown first when not all fit.
_ORDER: Sequence[ProcessState] = (
    "running",
    "ready",
    "waiting_device",
    "waiting_tool",
    "waiting_ipc",
    "waiting_child",
    "new",
    "sleeping",
    "stopped",
    "zombie",
    "dead",
)


def overview(
    info: KernelInfo, processes: Iterable[ProcessInfo], *, lines: int, width: int
) -> RenderableType:
    """Kernel, open devices and as many of the busiest processes as fit on `lines`."""
    devices = [device for device in info.devices if device.state != "closed"]
    rows = max(_LEAST_ROWS, lines - len(devices) - _OTHER_LINES)
    listed = sorted(processes, key=lambda process: (_ORDER.index(process.state), process.pid))
    shown = sorted(listed[:rows], key=lambda process: process.pid)
    parts: list[RenderableType] = [headline(info), tables.device_table(devices, width=width)]
    parts += [Text(), tables.process_table(shown, width=width)]
    if len(listed) > rows:
        parts.append(Text(f"and {len(listed) - rows} more", style="dim"))
    return Group(*parts)


def headline(info: KernelInfo) -> Text:
    """One line: how long up, how many processes, how much memory."""
    states = ", ".join(f"{number} {state}" for state, number in info.processes.items() if number)
    return Text.assemble(
        ("llmos", "bold"),
        f"  up {tables.seconds(info.uptime_s)}  policy {info.policy}"
        f"  resident {tables.size(info.resident_bytes)}  processes: {states or 'none'}",
        no_wrap=True,
        overflow="ellipsis",
    )


async def top(os: OS, terminal: Terminal) -> None:
    """Show processes and devices until q or Ctrl-C; once where no person watches."""
    keyboard = terminal.keyboard
    if keyboard is None or not terminal.is_interactive:
        terminal.screen.print(await _picture(os, lines=_ALL, width=terminal.screen.width))
        return
    leave = asyncio.Event()

    def pressed() -> None:
        if keyboard.closed or any(press.key in _LEAVE_KEYS for press in keyboard.read_keys()):
            leave.set()

    with (
        keyboard.raw_mode(),
        keyboard.attach(pressed),
        Live(console=terminal.screen, screen=True, auto_refresh=False) as live,
    ):
        while not leave.is_set():
            size = terminal.screen.size
            picture = await _picture(os, lines=size.height, width=size.width)
            live.update(picture, refresh=True)
            try:
                await asyncio.wait_for(leave.wait(), REFRESH_S)
            except TimeoutError:
                continue


async def _picture(os: OS, *, lines: int, width: int) -> RenderableType:
    return overview(await os.stat(), await os.ps(), lines=lines, width=width)
