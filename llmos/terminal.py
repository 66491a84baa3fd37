"""Where the person is: bytes typed for a foreground program, signals, and the screen.

Between two prompts the terminal's own line editing is in force, so that a foreground program is fed
whole lines, Ctrl-D ends its input, and Ctrl-C and Ctrl-Z arrive as signals.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from llmos.tables import console

if TYPE_CHECKING:
    from prompt_toolkit.input import Input

_CHUNK_BYTES = 65_536
# A model's text must not drive the terminal: every control byte but tab, line feed and return.
_CONTROLS = bytes(code for code in (*range(0x20), 0x7F) if code not in b"\t\n\r")


class Terminal:
    """A screen and, where there are any, the sources of what is typed.

    `input_fd` feeds foreground programs; `keyboard` gives the single keys that live views leave by;
    `is_muted` keeps output off the screen.
    """

    def __init__(
        self,
        *,
        input_fd: int | None,
        screen: Console | None = None,
        errors: Console | None = None,
        keyboard: Input | None = None,
    ) -> None:
        self.input_fd = input_fd
        self.keyboard = keyboard
        self.screen = screen or console()
        self.errors = errors or console(is_error=True)
        self.is_muted = False
        self._typed_ahead = b""
        self._is_at_line_start = True

    @classmethod
    def standard(cls, *, is_reading: bool = True) -> Terminal:
        """The process's own streams; not `is_reading` leaves standard input to others."""
        try:
            fd = sys.stdin.fileno() if is_reading else None
        except (OSError, ValueError, AttributeError):  # closed, or replaced by an embedder
            fd = None
        return cls(input_fd=fd)

    @property
    def has_input(self) -> bool:
        """Whether a foreground program can be typed to."""
        return self.input_fd is not None

    @property
    def is_interactive(self) -> bool:
        """Whether a person sees the screen."""
        return self.screen.is_terminal

    def write(self, data: bytes) -> None:
        """Show a program's output as it comes. Raises: BrokenPipeError."""
        if not data or self.is_muted:
            return
        if self.is_interactive:
            data = data.translate(None, _CONTROLS)
        stream = self.screen.file
        stream.flush()
        buffer = getattr(stream, "buffer", None)
        if buffer is None:
            stream.write(data.decode("utf-8", errors="replace"))
        else:
            buffer.write(data)
        stream.flush()
        self._is_at_line_start = data.endswith(b"\n")

    def end_line(self) -> None:
        """Start a new line unless the output stands at the start of one."""
        if not self._is_at_line_start:
            self.write(b"\n")

    def type_ahead(self, data: bytes) -> None:
        """Give the next foreground program what was typed before it started."""
        self._typed_ahead += data

    async def typed(self) -> AsyncIterator[bytes]:
        """What is typed, as it comes, until the end of the input."""
        if self._typed_ahead:
            ahead, self._typed_ahead = self._typed_ahead, b""
            yield ahead
        if self.input_fd is None:
            return
        while True:
            await _readable(self.input_fd)
            data = os.read(self.input_fd, _CHUNK_BYTES)
            if not data:
                return
            yield data


@contextmanager
def signals(handlers: dict[signal.Signals, Callable[[], object]]) -> Generator[None]:
    """Handle signals in the event loop for the time of a block; main thread only."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])


# --- internals ------------------------------------------------------------------------------------


async def _readable(fd: int) -> None:
    """Wait until a read would not block; regular files never do."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    try:
        loop.add_reader(fd, lambda: ready.done() or ready.set_result(None))
    except PermissionError:  # epoll refuses regular files
        return
    try:
        await ready
    finally:
        loop.remove_reader(fd)
