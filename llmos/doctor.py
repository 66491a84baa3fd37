"""`llmos doctor`: is everything here that llmos needs, and what to do about each thing that is not.

Looks and reads, changes nothing, downloads nothing. It does not load torch or a model: a check
that takes long or can crash is not a check.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.text import Text

from llmos import exits
from llmos.syscalls.errors import ConfigError, SyscallError
from llmos.tables import console, seconds, size

if TYPE_CHECKING:
    from llmos.config import Config

State = Literal["ok", "warning", "problem"]

_NEEDED = ("torch", "transformers", "llama-cpp-python", "faiss-cpu", "llguidance", "pydantic")
_USED_FOR_TRAINING = ("peft", "accelerate")
_LEAST_FREE_BYTES = 2 << 30
_LEAST_MEMORY_BYTES = 2 << 30
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_VERSION_FLAG = 1
_MARKS: dict[State, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "warning": ("!", "yellow"),
    "problem": ("x", "bold red"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `status` is the exit status that a problem gives."""

    what: str
    state: State
    detail: str
    remedy: str | None = None
    status: int = exits.FAILED


def examine(file: Path | None, *, as_json: bool) -> int:
    """Look at everything and print it; returns the status of the first problem, or 0."""
    findings = list(look(file))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False))
    else:
        screen = console()
        for finding in findings:
            mark, style = _MARKS[finding.state]
            line = Text.assemble((f"{mark:>2}  ", style), (f"{finding.what:<20} ", "bold"))
            screen.print(line.append(finding.detail), soft_wrap=True)
            if finding.remedy:
                screen.print(Text(f"{'':25}{finding.remedy}", style="dim"), soft_wrap=True)
    return next((f.status for f in findings if f.state == "problem"), exits.OK)


def look(file: Path | None = None) -> Iterator[Finding]:
    """The findings, in the order in which things are needed."""
    yield _python()
    yield from _packages()
    yield _compiler()
    try:
        config = _config(file)
    except ConfigError as problem:
        yield Finding("configuration", "problem", str(problem), status=exits.CONFIG)
        return
    yield _configuration(file)
    yield from _folders(config)
    yield _memory()
    yield from _models(config)
    yield from _tuning(config)
    yield from _isolation()
    yield _sandbox()


# --- findings -------------------------------------------------------------------------------------


def _python() -> Finding:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("python", "ok", f"{version}, {platform.machine()}, {os.cpu_count()} cores")
    return Finding("python", "problem", version, "llmos is made for Python 3.11 to 3.13")


def _packages() -> Iterator[Finding]:
    versions: list[str] = []
    for package in (*_NEEDED, *_USED_FOR_TRAINING):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(f"package {package}", "problem", "missing", f"pip install {package}")
    yield Finding("packages", "ok", ", ".join(versions))


def _compiler() -> Finding:
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if found:
        return Finding("compiler", "ok", found)
    return Finding(
        "compiler",
        "warning",
        "none; only needed to install llama-cpp-python from source",
        "Debian, Ubuntu: apt-get install g++",
    )


def _config(file: Path | None) -> Config:
    from llmos.config import load_config

    return load_config(file=file)


def _configuration(file: Path | None) -> Finding:
    from llmos.config import find_file, read_environment

    found = find_file(file or os.environ.get("LLMOS_CONFIG") or None)
    settings, unknown = read_environment(os.environ)
    detail = str(found) if found else "no llmos.toml: defaults"
    if settings:
        detail += f"; from the environment: {', '.join(sorted(settings))}"
    if unknown:
        return Finding(
            "configuration", "warning", detail, f"not settings of llmos: {', '.join(unknown)}"
        )
    return Finding("configuration", "ok", detail)


def _folders(config: Config) -> Iterator[Finding]:
    for what, folder in (("home", config.home), ("cache", config.cache)):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            yield Finding(
                what,
                "problem",
                f"{folder} is no folder that can be written",
                f"mend its permissions, or set LLMOS_{what.upper()} to another folder",
                exits.CONFIG,
            )
            continue
        free = shutil.disk_usage(existing).free
        is_little = free < _LEAST_FREE_BYTES
        yield Finding(
            what,
            "warning" if is_little else "ok",
            f"{folder}, {size(free)} free",
            f"models and the long-term store want {size(_LEAST_FREE_BYTES)}" if is_little else None,
        )


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    detail = f"{size(memory.available)} of {size(memory.total)} available"
    if memory.available >= _LEAST_MEMORY_BYTES:
        return Finding("memory", "ok", detail)
    return Finding(
        "memory",
        "warning",
        detail,
        "lower context_tokens and sequences of the models in llmos.toml",
    )


def _models(config: Config) -> Iterator[Finding]:
    from llmos.pulling import needed_models, open_store

    store = open_store(config)
    for source in needed_models(config):
        try:
            card = store.verify(source)
        except SyscallError as problem:
            yield Finding(
                f"model {source}",
                "problem",
                problem.message,
                f"llmos pull {source}",
                exits.UNAVAILABLE,
            )
        else:
            yield Finding(f"model {source}", "ok", f"{size(card.bytes)}, checked by sha256")


def _tuning(config: Config) -> Iterator[Finding]:
    """Whether the default model runs in the way that is fastest here."""
    from llmos.pulling import is_here, open_store
    from llmos.weights import in_force

    name = config.default_model
    model = config.models[name]
    store = open_store(config)
    if model.driver != "llama_cpp" or not is_here(store, model.source):
        return
    found = in_force(model, store.find(model.source), config.tuned_folder)
    is_open = found.by == "not tuned"
    yield Finding(
        "tuning",
        "warning" if is_open else "ok",
        f"{name} opens with weights {found}",
        f"llmos tune {name}: takes about a minute" if is_open else None,
    )


def _isolation() -> Iterator[Finding]:
    """What the machine's kernel offers for shutting tools in."""
    probes: tuple[tuple[str, Callable[[], str | None]], ...] = (
        ("bubblewrap", lambda: shutil.which("bwrap")),
        ("landlock", _landlock),
        ("seccomp", _seccomp),
    )
    offered = {name: found for name, probe in probes if (found := probe())}
    detail = ", ".join(f"{name} ({found})" for name, found in offered.items()) or "none"
    yield Finding("isolation offered", "ok" if offered else "warning", detail)


def _sandbox() -> Finding:
    """Which walls stand around Python that a model writes: tried, not guessed."""
    import asyncio

    from llmos.kernel.sandbox import run_python

    try:
        run = asyncio.run(run_python("print('inside')"))
    except SyscallError as problem:
        return Finding("python tool", "problem", problem.message)
    if run.status != 0 or "inside" not in run.output:
        return Finding("python tool", "problem", f"it ended with status {run.status}: {run.output}")
    detail = f"runs in {seconds(run.seconds)} behind: {', '.join(run.walls)}"
    if "network" in run.walls:
        return Finding("python tool", "ok", detail)
    return Finding(
        "python tool",
        "warning",
        detail,
        "this machine forbids user namespaces: such programs reach the network",
    )


# --- probes ---------------------------------------------------------------------------------------


def _landlock() -> str | None:
    """The version of Landlock's interface, or None where the kernel lacks it."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION_FLAG)
    return f"version {version}" if version > 0 else None


def _seccomp() -> str | None:
    path = Path("/proc/sys/kernel/seccomp/actions_avail")
    return "filters" if path.is_file() and "errno" in path.read_text() else None
