"""The worker as a process of the system: its output, its priority, its end.

Owns what a worker does to itself before any library is imported. Refuses to know its job.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

from llmos.drivers.training.job import Job
from llmos.syscalls.values import JsonValue

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Emit(Protocol):
    """Tells the process that started this one of an event."""

    def __call__(self, event: str, **fields: JsonValue) -> None: ...


def take_stdout() -> Emit:
    """Claim standard output for events; what libraries print goes to standard error instead."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(event: str, **fields: JsonValue) -> None:
        print(json.dumps({"event": event, **fields}, allow_nan=False), file=events, flush=True)

    return emit


def die_with(parent: int) -> None:
    """Have the system kill this process when its parent, `parent`, ends (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent:  # it ended before the line above
        raise SystemExit(f"process {parent}, which started this one, has ended")


def yield_processor(job: Job) -> None:
    """Take the processor only after inference, and few cores; before torch is imported."""
    os.nice(job.nice)
    policy = os.SCHED_IDLE if job.scheduling == "idle" else os.SCHED_BATCH
    try:
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except PermissionError as problem:  # some sandboxes refuse it; the nice value still holds
        print(f"the scheduling policy stays as it is: {problem}", file=sys.stderr)
    os.environ["OMP_NUM_THREADS"] = str(job.threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that wait by spinning rob inference
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def stay_offline() -> None:
    """Keep libraries from the network and from drawing progress bars; before they are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


@contextmanager
def uncollected() -> Generator[None]:
    """Within it nobody looks for garbage. Imports and models make objects by the hundred thousand,
    all of which stay: looking through them again and again takes a sixth of a worker's start.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def terminate_requested() -> Generator[Callable[[], bool]]:
    """Within it SIGTERM is noted instead of obeyed; gives a function that tells whether one came.

    Outside, SIGTERM ends the process at once: there is nothing to keep, or it is already kept.
    """
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGTERM, before)
