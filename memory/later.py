"""Work that nobody waits for, done by a thread that lives as long as there is some."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock, Thread


class Later:
    """Runs `work` in the background each time somebody asks, once for all who asked meanwhile.

    `work` handles its own errors. Thread-safe.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._name = name
        self._work = work
        self._lock = Lock()
        self._thread: Thread | None = None
        self._is_due = False
        self._is_stopped = False

    def ask(self) -> None:
        """Have the work done soon; does nothing once stopped."""
        with self._lock:
            if self._is_stopped:
                return
            self._is_due = True
            if self._thread is None:
                self._thread = Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Take no more work, and wait until what was begun is done."""
        with self._lock:
            self._is_stopped = True
            self._is_due = False
        self.wait()

    def wait(self) -> None:
        """Return when all that was asked for is done."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._is_due:
                    self._thread = None
                    return
                self._is_due = False
            self._work()
