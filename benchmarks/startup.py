"""How long a person waits: for help, for a kernel, for the first word of a model.

Every figure is of a cold process and counts from before it is started, the interpreter included.
The file cache of the machine is warm: the median of several starts is given.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.form import Floor, main

STARTS = 5

BOOT = """
import asyncio, llmos
async def main():
    async with llmos.boot():
        print("ready", flush=True)
asyncio.run(main())
"""

FIRST_TOKEN = """
import asyncio, llmos
async def main():
    async with llmos.boot() as kernel:
        async for piece in kernel.os.stream("Say hello.", max_tokens=4):
            print(piece.text, flush=True)
asyncio.run(main())
"""


def seconds_to_first_line(code: str) -> float:
    """Seconds from before a process is started until it has written a line."""
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        spent = time.perf_counter() - started
        process.stdout.read()
    if process.returncode or not line:
        raise SystemExit(f"a process to be measured failed with exit code {process.returncode}")
    return spent


def seconds_of_help() -> float:
    command = Path(sys.executable).parent / "llmos"
    started = time.perf_counter()
    subprocess.run([command, "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def measure() -> dict[str, float]:
    seconds_of_help()  # compiles what has not been compiled
    helped = statistics.median(seconds_of_help() for _ in range(STARTS))
    booted = statistics.median(seconds_to_first_line(BOOT) for _ in range(STARTS))
    spoken = statistics.median(seconds_to_first_line(FIRST_TOKEN) for _ in range(STARTS))
    return {
        "help_ms": round(helped * 1_000, 1),
        "boot_ms": round(booted * 1_000, 1),
        "first_token_s": round(spoken, 3),
    }


if __name__ == "__main__":
    main("startup", measure, [Floor("help_ms", "<", 300)])
