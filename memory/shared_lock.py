"""A lock that many may share, or one may have alone.

For state that is read often and changed rarely and briefly. Whoever wants it alone is let in before
those who come later to share it, so a stream of readers does not keep a change waiting. Not
re-entrant: a thread that shares it and asks again may wait for itself.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from threading import Condition, Lock
from types import TracebackType


class SharedLock:
    """Held by any number of sharers, or by one alone."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._changed = Condition(self._guard)
        self._sharers = 0
        self._is_alone = False
        self._waiting_alone = 0
        self._sharing = _Sharing(self)

    def shared(self) -> _Sharing:
        """Share it for the block of a `with`."""
        return self._sharing

    def lock_shared(self) -> None:
        """Share it until `unlock_shared`, which is called once for each call of this."""
        with self._guard:
            while self._is_alone or self._waiting_alone:
                self._changed.wait()
            self._sharers += 1

    def unlock_shared(self) -> None:
        """End what `lock_shared` began."""
        with self._guard:
            self._sharers -= 1
            if not self._sharers and self._waiting_alone:
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Generator[None]:
        """Have it alone for this block."""
        with self._guard:
            self._waiting_alone += 1
            try:
                while self._is_alone or self._sharers:
                    self._changed.wait()
                self._is_alone = True
            finally:
                self._waiting_alone -= 1
        try:
            yield
        finally:
            with self._guard:
                self._is_alone = False
                self._changed.notify_all()


class _Sharing:
    """The block of a sharer: one object for all, because it keeps nothing of its own."""

    __slots__ = ("_lock",)

    def __init__(self, lock: SharedLock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.lock_shared()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.unlock_shared()
