"""llama.cpp's log."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from llmos.drivers import llama_library
from llmos.drivers.llama_library import Heard, listen

take: Any = llama_library._take_line  # pyright: ignore[reportPrivateUsage]
INFO, ERROR, CONTINUED = 2, 4, 5


def test_errors_and_buffer_sizes_are_heard_and_added_up() -> None:
    with listen() as heard:
        take(INFO, b"load_tensors:   CPU_Mapped model buffer size =    92.10 MiB\n", None)
        take(INFO, b"load_tensors:   CPU_REPACK model buffer size =     1.50 MiB\n", None)
        take(INFO, b"llama_kv_cache:        CPU KV buffer size =    22.50 MiB\n", None)
        take(ERROR, b"it broke\n", None)
        take(CONTINUED, b".", None)
        take(ERROR, b"\xff and burnt", None)
    assert heard.buffers == {"model": int(92.10 * 2**20) + 3 * 2**19, "KV": 45 * 2**19}
    assert heard.reason == "it broke; � and burnt"


def test_what_other_threads_say_is_not_heard() -> None:
    with listen() as heard:
        thread = threading.Thread(target=take, args=(ERROR, b"elsewhere", None))
        thread.start()
        thread.join()
    take(ERROR, b"later", None)
    assert heard == Heard()
    assert heard.reason == "llama.cpp gave no reason"


def test_the_log_is_quiet_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger=llama_library.__name__):
        take(INFO, b"hello\n", None)
        take(ERROR, b"oh\n", None)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("DEBUG", "hello"),
        ("INFO", "oh"),
    ]
