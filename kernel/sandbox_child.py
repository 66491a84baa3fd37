"""The inside of the Python sandbox: bounds itself, then runs a program. Standard library only.

Started as a script by `sandbox.py` in an empty environment and a folder of its own, with what it
may use as JSON in its only argument. Says on its first line of output which walls stand, as JSON.

Where user namespaces are possible it makes three processes: the one that was started waits for the
first process of a new PID namespace, which waits for the program. When that first process ends, the
operating system ends all that is left in the namespace, whatever it did to get away.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import sys
import traceback
from typing import Any

PROGRAM = "program.py"

_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = (
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def main(settings: dict[str, Any]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    die_with_parent(libc, settings["parent"])
    walls = ["limits"]
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        walls.append("no_new_privileges")
    spaces = _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWPID | _CLONE_NEWIPC
    if settings["isolate"] and libc.unshare(spaces) == 0:
        walls += ["network", "processes"]
        in_child(libc, lambda: in_child(libc, lambda: None))
    print(json.dumps(walls), flush=True)
    limit(settings)
    run()


def die_with_parent(libc: ctypes.CDLL, parent: int) -> None:
    """Let the operating system kill this process when its parent is gone, or is gone already."""
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # Inside a PID namespace a parent outside of it counts as 0.
    if os.getppid() not in (parent, 0):
        os._exit(1)


def in_child(libc: ctypes.CDLL, go_on: Any) -> None:
    """Go on in a child; the caller waits for it and ends as it ended."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        die_with_parent(libc, parent)
        go_on()
        return
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)  # the output ends when the program ends
    os.dup2(null, 2)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def limit(settings: dict[str, Any]) -> None:
    """Set the hard limits of this process and all that it starts."""
    for name, value in settings["limits"].items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(kind)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))


def run() -> None:
    """Run the program as `__main__`; an exception is shown without our own frames."""
    with open(PROGRAM, encoding="utf-8") as file:  # noqa: PTH123 - pathlib would double the start
        source = file.read()
    names = {"__name__": "__main__", "__builtins__": __builtins__}
    try:
        exec(compile(source, PROGRAM, "exec"), names)
    except Exception as problem:  # noqa: BLE001 - whatever the program raises is its output
        trace = problem.__traceback__
        shown = trace.tb_next if trace is not None else None
        traceback.print_exception(type(problem), problem, shown)
        end(1)
    end(0)


def end(status: int) -> None:
    """Flush and leave; a reader that is gone is no error."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as problem:
        if problem.errno != errno.EPIPE:
            status = 1
    os._exit(status)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
