"""What the event loop and the device threads need of each other, and of the processor."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from llmos.drivers.contract import DeviceError
from llmos.syscalls.errors import KernelPanic, SyscallError

T = TypeVar("T")


def settle(future: asyncio.Future[Any], result: Any, problem: Exception | None) -> None:
    """Give a future its result or its exception, unless its reader is gone. Event loop only."""
    if future.done():
        return
    if problem is not None:
        future.set_exception(problem)
    else:
        future.set_result(result)


def contained(work: Callable[[], T], *, is_fatal: bool) -> T:
    """Run a driver's code: whatever it raises that is not ours becomes a `DeviceError`.

    Raises: DeviceError; SyscallError and KernelPanic pass.
    """
    try:
        return work()
    except (DeviceError, SyscallError, KernelPanic):
        raise
    except Exception as problem:
        raise DeviceError(f"{type(problem).__name__}: {problem}", is_fatal=is_fatal) from problem


def yield_to_others(steps: int) -> None:
    """Lower the priority of the calling thread, and of those that it will start.

    Linux only, where threads have priorities of their own. It cannot be undone.
    """
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    now = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, min(19, now + steps))
