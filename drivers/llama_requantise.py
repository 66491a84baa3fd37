"""A GGUF model in another number format, made by llama.cpp.

Owns where the result is kept: beside the source, under a name with the source's fingerprint, so a
file that is there is whole and belongs to that source. A wider format holds the same weights and
may compute faster or more exactly; a narrower one loses some.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from llmos.drivers import kv_blob
from llmos.drivers.contract import DeviceError
from llmos.drivers.gguf_header import DamagedFile, read_gguf_header
from llmos.drivers.llama_library import listen, load_library

Format = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]
_FORM = "gguf copy 1"


def requantised(source: Path, format: Format, *, threads: int | None = None) -> Path:
    """The model in `source` in another format; made on the first call, which takes seconds.

    Raises: DeviceError when the source is damaged or the copy cannot be made.
    """
    try:
        read_gguf_header(source)
        key = kv_blob.fingerprint(source, f"{_FORM} {format}").hex()
    except DamagedFile as problem:
        raise DeviceError(str(problem)) from problem
    except OSError as problem:
        raise DeviceError(f"cannot read {source}: {problem.strerror}") from problem
    target = source.with_name(f"{source.stem}.{format}-{key[:16]}.gguf")
    if not target.exists():
        _make(source, target, format, threads)
    return target


def _make(source: Path, target: Path, format: Format, threads: int | None) -> None:
    library = load_library()
    parameters: Any = library.llama_model_quantize_default_params()
    is_whole = format == "F32"
    name = f"LLAMA_FTYPE_{'ALL' if is_whole else 'MOSTLY'}_{format}"
    parameters.ftype = getattr(library, name)
    parameters.allow_requantize = True
    parameters.nthread = threads or len(os.sched_getaffinity(0))
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            partial = Path(folder) / target.name
            with listen() as heard:
                status: int = library.llama_model_quantize(
                    os.fsencode(source), os.fsencode(partial), parameters
                )
            if status:
                raise DeviceError(
                    f"llama.cpp cannot write {source.name} as {format}: {heard.reason}"
                )
            partial.replace(target)
    except OSError as problem:
        raise DeviceError(
            f"a copy of {source.name} cannot be written beside it: {problem.strerror}"
        ) from problem
