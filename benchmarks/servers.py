"""Inference servers as separate processes, for benchmarks that compare over HTTP.

Owns how each is started with the same model file, window and threads, when it is ready, and that
it is gone afterwards. What a benchmark sends is its own matter.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx

START_LIMIT_S = 120.0
STOP_LIMIT_S = 15.0


class Serving(NamedTuple):
    """A server that answers: its address, the model's name there, and how it was started."""

    url: str
    model: str
    flags: str


class Sizes(NamedTuple):
    """What all sides of a comparison are given: `window` tokens for each of `sequences`."""

    sequences: int
    window: int
    threads: int


def threads() -> int:
    """One for each core that this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def llmos(
    sizes: Sizes, *, model: Mapping[str, object] | None = None, cache: Path | None = None
) -> Generator[Serving]:
    """`llmos serve` with an empty home; `model` are more settings of the model."""
    settings = {
        "weights": "shipped",  # the other servers' file; `model` may say "tuned"
        "context_tokens": sizes.window,
        "sequences": sizes.sequences,
        "threads": sizes.threads,
        **(model or {}),
    }
    table = {"source": "smollm2", "driver": "llama_cpp", **settings}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "llmos.toml"
        lines = ['home = "home"']
        lines += [f"cache = {json.dumps(str(cache))}"] if cache else []
        lines += ["[models.smollm2]", *(f"{key} = {json.dumps(table[key])}" for key in table)]
        config.write_text("\n".join(lines) + "\n")
        port = free_port()
        command = [sys.executable, "-m", "llmos", "serve", "--config", str(config)]
        flags = " ".join(f"{key}={value}" for key, value in settings.items())
        with _running([*command, "--port", str(port)], f"http://127.0.0.1:{port}", "/health"):
            yield Serving(f"http://127.0.0.1:{port}", "smollm2", flags)


@contextlib.contextmanager
def llama_server(
    binary: Path, model: Path, sizes: Sizes, flags: Sequence[str] = ()
) -> Generator[Serving]:
    """llama.cpp's server. Without `flags` of its own it decides about slots and windows itself."""
    port = free_port()
    command = [str(binary), "-m", str(model), "-t", str(sizes.threads), "--port", str(port), *flags]
    with _running(command, f"http://127.0.0.1:{port}", "/health"):
        yield Serving(f"http://127.0.0.1:{port}", "model", " ".join(flags))


def separate_streams(sizes: Sizes) -> tuple[str, ...]:
    """Flags that give each of llama-server's slots a KV stream of its own: its fastest here."""
    return (
        *("-np", str(sizes.sequences)),
        "-no-kvu",
        *("-c", str(sizes.sequences * sizes.window)),
    )


@contextlib.contextmanager
def python_server(model: Path, sizes: Sizes) -> Generator[Serving]:
    """llama-cpp-python's own server, which needs the package's extra `server`."""
    port = free_port()
    settings = {
        "n_ctx": sizes.window,
        "n_batch": 512,
        "n_threads": sizes.threads,
        "n_threads_batch": sizes.threads,
        "flash_attn": "true",
    }
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), *flags]
    url = f"http://127.0.0.1:{port}"
    with _running([*command, "--port", str(port)], url, "/v1/models"):
        yield Serving(url, "model", " ".join(flags))


def has_python_server() -> bool:
    """Whether what llama-cpp-python's server needs is installed."""
    needed = ("fastapi", "pydantic_settings", "sse_starlette", "starlette_context", "uvicorn")
    return all(importlib.util.find_spec(name) for name in needed)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


@contextlib.contextmanager
def _running(command: Sequence[str], url: str, path: str) -> Generator[None]:
    """A server's process, from the time that it answers to its end."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            if not _answers(process, url + path):
                log.seek(0)
                said = log.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"{command[0]} did not come up:\n{said}")
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(process: subprocess.Popen[bytes], url: str) -> bool:
    """Wait until a URL is served; False when the process ends or takes too long."""
    limit = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < limit:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return True
        time.sleep(0.1)
    return False
