"""Child processes of a set-up: output to a log, lines to the caller, all of them stopped together.

Knows nothing of what the commands do.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path


class CommandFailed(Exception):
    """A command ended with another status than 0; `log` holds what it said."""

    def __init__(self, what: str, log: Path) -> None:
        super().__init__(what)
        self.log = log


class Commands:
    """Runs commands from any thread; `stop` ends those that run now and refuses further ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = threading.Event()

    def run(self, command: list[str], log: Path, **environment: str) -> Iterator[str]:
        """Append a command's output to the log and yield its lines as they come.

        `environment` adds to that of this process.
        Raises: CommandFailed when it exits with another status than 0.
        """
        with log.open("a") as file:
            file.write(f"$ {' '.join(command)}\n")
            process = self._start(command, log, environment)
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    yield line.strip()
                status = process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
                _end(process)
        if status != 0:
            raise CommandFailed(f"`{' '.join(command[1:4])} ...` ended with status {status}", log)

    def pause(self, seconds: float, log: Path) -> None:
        """Wait. Raises: CommandFailed as soon as everything is stopped."""
        if self._stopped.wait(seconds):
            raise CommandFailed("another part of the set-up failed first", log)

    def stop(self) -> None:
        """End every running command and its children."""
        with self._lock:
            self._stopped.set()
            for process in self._running:
                _end(process)

    def _start(
        self, command: list[str], log: Path, environment: dict[str, str]
    ) -> subprocess.Popen[str]:
        with self._lock:
            self.pause(0, log)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                    **environment,
                },
                # Its own group: a compile is a tree of processes, and must end as one.
                start_new_session=True,
            )
            self._running.add(process)
            return process


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


_REMEDIES = (
    ("No space left on device", "the disk is full: free about 6 GB, then run make again"),
    (
        "Temporary failure in name resolution|ConnectionError|NewConnectionError|ConnectTimeout"
        "|Read timed out|No matching distribution found|ResolutionImpossible|not_available",
        "a download failed: check the network and pip's index settings (pip config list), "
        "then run make again; what is already downloaded is kept",
    ),
    (
        "Killed signal|internal compiler error|virtual memory exhausted|Cannot allocate memory",
        "the compiler ran out of memory: close other programs and run "
        "`CMAKE_BUILD_PARALLEL_LEVEL=1 make setup`",
    ),
    ("", "the log names the first error; mend it and run make again"),
)


def explain(part: str, problem: CommandFailed) -> str:
    """What failed, the end of its log and what to do, as lines for a person."""
    text = problem.log.read_text() if problem.log.exists() else ""
    remedy = next(remedy for pattern, remedy in _REMEDIES if re.search(pattern, text))
    tail = "".join(f"  | {line}\n" for line in text.splitlines()[-25:])
    return f"set-up failed at {part}: {problem}\n{tail}Whole log: {problem.log}\nRemedy: {remedy}."
