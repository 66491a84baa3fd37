"""Standard streams: pipes between processes, and consoles that people read.

A pipe is bounded: a writer waits while it is full, a reader while it is empty, and each learns when
the other end is gone. A console keeps the newest output of a process whose standard output nobody
reads through a pipe. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from llmos.kernel.process import Process
from llmos.kernel.waits import Waits
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Data


class Pipe:
    """Bytes from one process to another; `writer` or `reader` is None for the embedder's side."""

    def __init__(self, *, capacity_bytes: int, writer: int | None, reader: int | None) -> None:
        self.writer = writer
        self.reader = reader
        self._capacity_bytes = capacity_bytes
        self._buffer = bytearray()
        self._is_write_closed = False
        self._is_read_closed = False
        self._readers: list[asyncio.Future[None]] = []
        self._writers: list[asyncio.Future[None]] = []

    async def read(self, process: Process, waits: Waits, max_bytes: int) -> Data:
        """Up to `max_bytes`; waits while the pipe is empty and its writer lives."""
        while not self._buffer and not (self._is_write_closed or self._is_read_closed):
            future = asyncio.get_running_loop().create_future()
            self._readers.append(future)
            await waits.block(
                process, future, state="waiting_ipc", on="standard input", target=self.writer
            )
        data = bytes(self._buffer[:max_bytes])
        del self._buffer[:max_bytes]
        _wake(self._writers)
        is_closed = self._is_write_closed or self._is_read_closed
        return Data(data=data, is_eof=is_closed and not self._buffer)

    async def write(self, process: Process, waits: Waits, data: bytes) -> int:
        """All of `data`, in pieces as room appears. Raises: SyscallError("broken_pipe")."""
        view = memoryview(data)
        while view:
            self._require_reader(written=len(data) - len(view))
            room = self._capacity_bytes - len(self._buffer)
            if room <= 0:
                future = asyncio.get_running_loop().create_future()
                self._writers.append(future)
                await waits.block(
                    process, future, state="waiting_ipc", on="a full pipe", target=self.reader
                )
                continue
            self._buffer += view[:room]
            view = view[room:]
            _wake(self._readers)
        self._require_reader(written=len(data))
        return len(data)

    async def feed(self, data: bytes) -> None:
        """Write from outside the kernel. Raises: SyscallError("broken_pipe")."""
        self._require_reader(written=0)
        while len(self._buffer) >= self._capacity_bytes:
            future = asyncio.get_running_loop().create_future()
            self._writers.append(future)
            await future
            self._require_reader(written=0)
        self._buffer += data
        _wake(self._readers)

    def prefill(self, data: bytes) -> None:
        """Put what a console had kept in front of what will be written."""
        self._buffer += data
        _wake(self._readers)

    def close_write(self) -> None:
        """No more will come: the reader sees end of file after the rest."""
        self._is_write_closed = True
        _wake(self._readers)

    def close_read(self) -> None:
        """Nobody will read: writers get `broken_pipe`, and who reads all the same is at the end."""
        self._is_read_closed = True
        self._buffer.clear()
        _wake(self._writers)
        _wake(self._readers)

    def _require_reader(self, *, written: int) -> None:
        if self._is_read_closed:
            raise SyscallError(
                "broken_pipe",
                f"the reader of this pipe has ended; {written} bytes were written",
                written=written,
            )


class Console:
    """The newest output of a process, for whoever looks; `dropped_bytes` left it at the front."""

    def __init__(self, *, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._buffer = bytearray()
        self.dropped_bytes = 0
        self._is_closed = False
        self._readers: list[asyncio.Future[None]] = []

    def write(self, data: bytes) -> int:
        self._buffer += data
        excess = len(self._buffer) - self._capacity_bytes
        if excess > 0:
            del self._buffer[:excess]
            self.dropped_bytes += excess
        _wake(self._readers)
        return len(data)

    def close_write(self) -> None:
        """The process has ended."""
        self._is_closed = True
        _wake(self._readers)

    def kept(self) -> bytes:
        """What is kept now."""
        return bytes(self._buffer)

    async def follow(self) -> AsyncIterator[bytes]:
        """What is kept and then what comes, until the process ends."""
        position = self.dropped_bytes
        while True:
            start = max(position, self.dropped_bytes)
            data = bytes(self._buffer[start - self.dropped_bytes :])
            position = start + len(data)
            if data:
                yield data
            elif self._is_closed:
                return
            else:
                future = asyncio.get_running_loop().create_future()
                self._readers.append(future)
                await future


def _wake(waiters: list[asyncio.Future[None]]) -> None:
    for future in waiters:
        if not future.done():
            future.set_result(None)
    waiters.clear()
