"""A kernel's trace as a file that Perfetto opens."""

from __future__ import annotations

import json
from pathlib import Path

from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonObject

VIEWER = "https://ui.perfetto.dev"


def write_trace(trace: JsonObject, path: Path | str) -> Path:
    """Write a trace in the Chrome format and return where. Raises: SyscallError("storage")."""
    target = Path(path).expanduser().absolute()
    try:
        target.write_text(json.dumps(trace), encoding="utf-8")
    except OSError as problem:
        raise SyscallError(
            "storage", f"{target} cannot be written: {problem.strerror}", path=str(target)
        ) from problem
    return target
