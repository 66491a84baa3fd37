"""A lock that many may share, or one may have alone.

For state that is read often and changed rarely and briefly. Whoever wants it alone is let in before
those who come later to share it, so a stream of readers does not keep a change waiting. Not
re-entrant: a thread that shares it and asks again may wait for itself.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from threading import Condition, Lock


class SharedLock:
    """Held by any number of sharers, or by one alone."""

    def __init__(self) -> None:
        self._changed = Condition(Lock())
        self._sharers = 0
        self._is_alone = False
        self._waiting_alone = 0

    @contextmanager
    def shared(self) -> Generator[None]:
        """Share it for this block."""
        with self._changed:
            while self._is_alone or self._waiting_alone:
                self._changed.wait()
            self._sharers += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharers -= 1
                if not self._sharers:
                    self._changed.notify_all()

    @contextmanager
    def alone(self) -> Generator[None]:
        """Have it alone for this block."""
        with self._changed:
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
            with self._changed:
                self._is_alone = False
                self._changed.notify_all()
