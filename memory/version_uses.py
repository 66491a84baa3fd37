"""Who uses which version now, on the whole machine.

While somebody uses a version, this process shares a lock on a file of its name; a delete needs that
lock alone. The lock goes with the process, so one that is killed keeps nothing. Within the process
it is known who the users are. Safe for several threads.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from llmos.syscalls.errors import SyscallError


class VersionUses:
    """The uses of the versions of one registry; `folder` is its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._users: dict[str, Counter[int]] = {}
        self._held: dict[str, int] = {}  # the descriptor that holds the shared lock

    def take(self, name: str, pid: int) -> None:
        """Note that a process of this kernel uses a version, once more if it does already.

        Raises: SyscallError("busy"), retryable, while it is being deleted; OSError.
        """
        with self._lock:
            if name not in self._held:
                self._held[name] = self._open(name, fcntl.LOCK_SH)
            self._users.setdefault(name, Counter())[pid] += 1

    def drop(self, name: str, pid: int) -> None:
        """Take back one `take`."""
        with self._lock:
            users = self._users[name]
            users[pid] -= 1
            if not users[pid]:
                del users[pid]
            if not users:
                del self._users[name]
                os.close(self._held.pop(name))

    def users(self, name: str) -> list[int]:
        """The processes of this kernel that use a version now."""
        with self._lock:
            return sorted(self._users.get(name, ()))

    @contextmanager
    def nobody(self, name: str) -> Generator[None]:
        """Keep a version from being used for this block.

        Raises: SyscallError("busy") naming who uses it; OSError.
        """
        if pids := self.users(name):
            who = ", ".join(map(str, pids))
            raise SyscallError(
                "busy",
                f"{name} is used now by process {who}; wait until it has its answer, or end it",
                is_retryable=True,
                name=name,
                pids=pids,
            )
        descriptor = self._open(name, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let go of every lock."""
        with self._lock:
            for descriptor in self._held.values():
                os.close(descriptor)
            self._held.clear()
            self._users.clear()

    def _open(self, name: str, how: int) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / quote(name, safe="")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            doing = "is used now by" if how == fcntl.LOCK_EX else "is being deleted by"
            raise SyscallError(
                "busy",
                f"{name} {doing} another kernel on this machine; try again later",
                is_retryable=True,
                name=name,
            ) from None
        return descriptor
