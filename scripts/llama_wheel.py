"""The compiled llama.cpp binding: build once for this processor, keep, reuse.

The index carries its source only, and ggml compiles for the very processor that it runs on. So the
wheel is kept in the user's cache folder under a key of everything that the result depends on, and
any later clone takes it from there. Knows nothing of virtual environments but the Python it is
given.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from commands import CommandFailed, Commands

PACKAGE = "llama-cpp-python"

# Text only: without the image part (mtmd) and without llama.cpp's common library, which serves its
# own programs, less than half of the compile is left.
OPTIONS = ("cmake.define.LLAVA_BUILD=OFF", "build.targets=llama")
# The package forces the common library on in CMake's cache; a variable that every `project()` sets
# in its own scope is stronger.
CMAKE_SETTINGS = "set(LLAMA_BUILD_COMMON OFF)\n"
# What a user may set to change the result, such as CMAKE_ARGS=-DGGML_CUDA=on.
SETTINGS = ("CMAKE_ARGS", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CC", "CXX")

_STEP = re.compile(r"\[(\d+)/(\d+)\]")

Report = Callable[[str], None]


def wheels_folder() -> Path:
    """Where built wheels are kept for every clone of this user."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "llmos" / "wheels"


def key(release: str) -> str:
    """A folder name for a build of `release` on this processor with these settings."""
    parts = [*_processor(), "-".join(platform.libc_ver()), *OPTIONS, CMAKE_SETTINGS]
    parts += [f"{name}={os.environ[name]}" for name in SETTINGS if os.environ.get(name)]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return f"{PACKAGE}-{release}-{platform.machine()}-{digest}"


def cached(release: str) -> Path | None:
    """The wheel that an earlier set-up built, or None."""
    wheels = (wheels_folder() / key(release)).glob("*.whl")
    return next((wheel for wheel in wheels if zipfile.is_zipfile(wheel)), None)


def ensure(release: str, python: Path, commands: Commands, log: Path, report: Report) -> Path:
    """The cached wheel, compiled first when there is none.

    Two set-ups at once compile once: the second waits for the first. Raises: CommandFailed.
    """
    wheels_folder().mkdir(parents=True, exist_ok=True)
    with _lock(wheels_folder() / f"{key(release)}.lock", commands, log, report):
        return cached(release) or _build(release, python, commands, log, report)


def _build(release: str, python: Path, commands: Commands, log: Path, report: Report) -> Path:
    report("downloading the source")
    # Beside its target, so that the last step is a rename; /tmp may be too small for a compile.
    with tempfile.TemporaryDirectory(dir=wheels_folder(), prefix=".building-") as scratch:
        settings = Path(scratch) / "settings.cmake"
        settings.write_text(CMAKE_SETTINGS)
        # No cache: pip's own of built wheels knows neither the processor nor the options.
        command = [str(python), "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-cache-dir"]
        options = [*OPTIONS, f"cmake.define.CMAKE_PROJECT_INCLUDE={settings}"]
        command += [f"--config-settings={option}" for option in options]
        command += ["--wheel-dir", scratch, f"{PACKAGE}=={release}"]
        for line in commands.run(command, log, TMPDIR=scratch):
            step = _STEP.search(line)
            if step:
                report(f"compiling, step {step[1]} of {step[2]}")
        built = next(Path(scratch).glob("*.whl"), None)
        if built is None:
            raise CommandFailed("pip ended well but left no wheel", log)
        target = wheels_folder() / key(release)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        return built.rename(target / built.name)


def _processor() -> list[str]:
    """The processor's name and instruction sets, as Linux reports them."""
    names = ("model name", "flags", "CPU implementer", "CPU part", "Features")
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in names:
            found.setdefault(name.strip(), " ".join(sorted(value.split())))
    return [f"{name}: {value}" for name, value in sorted(found.items())]


@contextmanager
def _lock(path: Path, commands: Commands, log: Path, report: Report) -> Generator[None]:
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                report("waiting for another set-up that compiles the same wheel")
            # A blocking flock could not be called off when another part fails.
            commands.pause(0.5, log)
        yield
