"""The KV cache of a llama.cpp context, by llama.cpp's own sequence numbers.

Owns the calls that read, write, share and drop cells. Which sequence of ours has which number, and
how many tokens it should hold, is known one level up (`llama_kv.py`).

A copy from one sequence to another goes through the sequence's state and a buffer that is kept:
state out and in are two plain copies of memory, while a fresh buffer would cost more than both in
page faults (2,000 tokens of SmolLM2-135M: 14 ms against 32 ms).
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmos.drivers.contract import DeviceError
from llmos.drivers.llama_library import listen

State = NDArray[np.uint8]


class LlamaStates:
    """The sequences of one open context. Unusable once the context is freed."""

    def __init__(self, library: Any, context: Any) -> None:
        self._lib = library
        self._context = context
        self._memory = library.llama_get_memory(context)
        self._buffer: State = np.empty(0, np.uint8)

    @property
    def buffer_bytes(self) -> int:
        """Bytes that are kept for copies."""
        return self._buffer.nbytes

    def read(self, number: int) -> State:
        """A sequence's state. Raises: DeviceError."""
        return self._read_into(np.empty(self._size(number), np.uint8), number)

    def write(self, state: State, number: int, tokens: int) -> None:
        """Fill an empty sequence from a state that holds `tokens` tokens. Raises: DeviceError."""
        with listen() as heard:
            read: int = self._lib.llama_state_seq_set_data(
                self._context, _bytes_at(state), len(state), number
            )
        held: int = self._lib.llama_memory_seq_pos_max(self._memory, number) + 1
        if not read or held != tokens:
            self.drop(number, 0)
            raise DeviceError(
                f"the saved sequence cannot be restored: {held} of {tokens} tokens; {heard.reason}"
            )

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Fill an empty sequence from one that holds `tokens` tokens. Raises: DeviceError."""
        size = self._size(source)
        if self._buffer.nbytes < size:
            self._buffer = np.empty(size, np.uint8)
        self.write(self._read_into(self._buffer[:size], source), target, tokens)

    def share(self, source: int, target: int, tokens: int) -> None:
        """Let an empty sequence hold the first cells of another; both are in one buffer."""
        self._lib.llama_memory_seq_cp(self._memory, source, target, 0, tokens)

    def drop(self, number: int, start: int) -> None:
        """Drop a sequence's cells from position `start` on. Raises: DeviceError, fatal."""
        if not self._lib.llama_memory_seq_rm(self._memory, number, start, -1):
            raise DeviceError(
                f"llama.cpp cannot drop a sequence from token {start} on", is_fatal=True
            )

    def _size(self, number: int) -> int:
        size: int = self._lib.llama_state_seq_get_size(self._context, number)
        return size

    def _read_into(self, state: State, number: int) -> State:
        with listen() as heard:
            written: int = self._lib.llama_state_seq_get_data(
                self._context, _bytes_at(state), len(state), number
            )
        if not written:
            raise DeviceError(f"llama.cpp cannot save a sequence: {heard.reason}")
        return state


def _bytes_at(array: State) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
