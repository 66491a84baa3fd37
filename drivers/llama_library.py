"""The llama.cpp library: loaded when first needed, its log routed to `logging`.

llama.cpp reports why it failed and how much memory it took only in its log, so the log is read
here: `listen` collects what one call of this thread says. Error lines go to the logger at level
INFO, all else at DEBUG: what went wrong is told by the `DeviceError` that carries them.
"""

from __future__ import annotations

import ctypes
import logging
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

_logger = logging.getLogger(__name__)

# ggml's levels (ggml.h); 5 continues the line before.
_ERROR, _CONTINUED = 4, 5
_BUFFER = re.compile(r"(\w+) +buffer size = +([\d.]+) MiB")
_local = threading.local()


@dataclass(slots=True)
class Heard:
    """What llama.cpp said during one call: its errors, and bytes by kind of buffer."""

    errors: list[str] = field(default_factory=list[str])
    buffers: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def reason(self) -> str:
        """The errors as one line."""
        return "; ".join(self.errors) or "llama.cpp gave no reason"


def load_library() -> Any:
    """The module of llama.cpp's C functions; its log is routed from now on."""
    return _load()[0]


@cache
def _load() -> tuple[Any, Any]:
    """The module and the log callback. The library keeps the callback's bare pointer: were it
    collected, the next line of the log would be a segmentation fault.
    """
    import llama_cpp

    library: Any = llama_cpp
    callback = library.llama_log_callback(_take_line)
    library.llama_log_set(callback, ctypes.c_void_p(0))
    library.llama_backend_init()
    return library, callback


@contextmanager
def listen() -> Generator[Heard]:
    """Collect what llama.cpp says on this thread."""
    heard = Heard()
    _local.heard = heard
    try:
        yield heard
    finally:
        _local.heard = None


def _take_line(level: int, text: bytes, _user_data: Any) -> None:
    line = text.decode("utf-8", errors="replace").strip()
    if not line or level == _CONTINUED:
        return
    _logger.log(logging.INFO if level == _ERROR else logging.DEBUG, "%s", line)
    heard: Heard | None = getattr(_local, "heard", None)
    if heard is None:
        return
    if level == _ERROR:
        heard.errors.append(line)
    elif found := _BUFFER.search(line):
        kind, size = found[1], int(float(found[2]) * 1024 * 1024)
        heard.buffers[kind] = heard.buffers.get(kind, 0) + size
