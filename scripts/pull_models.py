"""Pull models into the model store, a line of progress at most twice a second."""

from __future__ import annotations

import sys
import time

from llmos.memory.model_store import ModelStore
from llmos.syscalls.errors import SyscallError


def main(names: list[str]) -> int:
    """Pull the models. Returns the exit status."""
    store = ModelStore()
    said_at = 0.0

    def say(stage: str, done_bytes: int, total_bytes: int | None) -> None:
        nonlocal said_at
        if time.monotonic() - said_at > 0.5:
            said_at = time.monotonic()
            total = f" of {total_bytes / 1e6:.0f}" if total_bytes else ""
            print(f"{name}, {stage} {done_bytes / 1e6:.0f}{total} MB", flush=True)

    for name in names:
        try:
            store.pull(name, progress=say)
        except SyscallError as problem:
            print(problem)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
