"""GGUF models in other number formats, made by llama.cpp and kept beside their source.

Owns the copies' names: a name carries the source's fingerprint, so a file that is there is whole
and belongs to that source. A wider format holds the same weights and may compute faster or more
exactly; a narrower one loses some. Refuses to know which format is best: that is measured
(`tuning.py`).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from llmos.drivers import kv_blob
from llmos.drivers.contract import DeviceError
from llmos.drivers.gguf_header import DamagedFile, GgufHeader, read_gguf_header
from llmos.drivers.llama_library import listen, load_library

Format = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]
FORMATS: tuple[Format, ...] = get_args(Format)
# Bits of one weight, scales included; the few tensors that stay wider are small.
BITS: Mapping[Format, float] = {
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "Q8_0": 8.5,
    "Q4_0": 4.5,
    "Q4_1": 5,
}
# `general.file_type` of a GGUF header (llama.h, enum llama_ftype).
_FILE_TYPES: Mapping[int, Format] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    32: "BF16",
}
_FORM = "gguf copy 1"


class Copy(NamedTuple):
    """A copy of a model that is here."""

    format: Format
    path: Path
    bytes: int


class Shipped(NamedTuple):
    """What a model's own file is; `format` is None for one that no copy can be made in."""

    format: Format | None
    parameters: int
    bytes: int


def requantised(source: Path, format: Format, *, threads: int | None = None) -> Path:
    """The model in `source` in another format; made on the first call, which takes seconds.

    Whole or not at all, whoever ends this process; two that want the same copy make it once.
    Raises: DeviceError when the source is damaged or the copy cannot be made.
    """
    _header(source)
    target = copy_path(source, format)
    if not target.exists():
        try:
            with _alone(source):
                if not target.exists():
                    _make(source, target, format, threads)
        except OSError as problem:
            raise DeviceError(
                f"a copy of {source.name} cannot be written beside it: {problem.strerror}"
            ) from problem
    return target


def copy_path(source: Path, format: Format) -> Path:
    """Where a model's copy in a format is, or would be. Raises: DeviceError."""
    try:
        key = kv_blob.fingerprint(source, f"{_FORM} {format}").hex()
    except OSError as problem:
        raise DeviceError(f"cannot read {source}: {problem.strerror}") from problem
    return source.with_name(f"{source.stem}.{format}-{key[:16]}.gguf")


def copies(source: Path) -> tuple[Copy, ...]:
    """The copies of a model that are here. Raises: DeviceError."""
    here: list[Copy] = []
    for format in FORMATS:
        path = copy_path(source, format)
        if path.exists():
            here.append(Copy(format, path, path.stat().st_size))
    return tuple(here)


def shipped(source: Path) -> Shipped:
    """What a model's file says of itself. Raises: DeviceError when it is missing or damaged."""
    header = _header(source)
    format = _FILE_TYPES.get(int(header.metadata.get("general.file_type", -1)))
    return Shipped(format, header.parameters, source.stat().st_size)


# --- internals ------------------------------------------------------------------------------------


def _header(source: Path) -> GgufHeader:
    try:
        return read_gguf_header(source)
    except DamagedFile as problem:
        raise DeviceError(str(problem)) from problem
    except OSError as problem:
        raise DeviceError(f"cannot read {source}: {problem.strerror}") from problem


@contextmanager
def _alone(source: Path) -> Generator[None]:
    """One maker of copies of this source at a time, whichever thread or process it is in."""
    with source.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # Alone, whatever lies there half made is of a process that was killed.
        formats = "|".join(FORMATS)
        partial = re.compile(rf"\.{re.escape(source.stem)}\.({formats})-[0-9a-f]{{16}}\.gguf\..+")
        for left in source.parent.iterdir():
            if partial.fullmatch(left.name):
                shutil.rmtree(left, ignore_errors=True)
        yield


def _make(source: Path, target: Path, format: Format, threads: int | None) -> None:
    library = load_library()
    parameters: Any = library.llama_model_quantize_default_params()
    is_whole = format == "F32"
    name = f"LLAMA_FTYPE_{'ALL' if is_whole else 'MOSTLY'}_{format}"
    parameters.ftype = getattr(library, name)
    parameters.allow_requantize = True
    parameters.nthread = threads or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        partial = Path(folder) / target.name
        with listen() as heard:
            status: int = library.llama_model_quantize(
                os.fsencode(source), os.fsencode(partial), parameters
            )
        if status:
            raise DeviceError(f"llama.cpp cannot write {source.name} as {format}: {heard.reason}")
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
