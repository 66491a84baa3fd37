"""Exports as the kernel runs them: a worker process for each, and what it is told.

Also makes the GGUF form of full weights that llama.cpp serves; it is kept beside the version's
files, and goes with them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from llmos.drivers import model_export as worker
from llmos.drivers.model_export import ExportJob
from llmos.kernel.worker import Worker
from llmos.syscalls.errors import ErrorValue, SyscallError
from llmos.syscalls.learning import ModelExport
from llmos.syscalls.learning_results import Exported, ModelVersion
from llmos.syscalls.values import JsonObject

_GRACE_S = 2.0
_SERVED = "weights-F16.gguf"


def check_exportable(version: ModelVersion, call: ModelExport) -> None:
    """Raises: SyscallError: "not_available" for kinds without weights of a decoder; "invalid"."""
    if version.kind not in ("adapter", "full"):
        raise SyscallError(
            "not_available",
            f"{version.name} is a version of kind {version.kind}; adapters and full weights of "
            f"decoders are exported. The files of this one are at {version.path}",
            name=version.name,
        )
    if call.quantize is not None and call.format != "gguf":
        raise SyscallError(
            "invalid", "quantize: it is the number format of a GGUF file", field="quantize"
        )


async def export(
    version: ModelVersion,
    folder: Path,
    weights: Path,
    base: Path,
    call: ModelExport,
    target: Path,
) -> Exported:
    """Write a version that can be. `folder` has its files; an adapter changes `weights`.

    `base` are the weights that it all began from. Raises: SyscallError: "not_available" for what
    cannot be merged or written so; "storage".
    """
    is_adapter = version.kind == "adapter"
    written = await _run(
        ExportJob(
            weights=str(weights if is_adapter else folder),
            base=str(base),
            adapter=str(folder) if is_adapter else None,
            target=str(target),
            format=call.format,
            quantize=call.quantize or "F16",
        )
    )
    return Exported(
        path=str(target),
        format=call.format,
        quantize=(call.quantize or "F16") if call.format == "gguf" else None,
        bytes=written,
    )


async def gguf_of_full(folder: Path, base: Path) -> Path:
    """Full weights as a GGUF file, made at the first call. Raises: as `export`."""
    target = folder / _SERVED
    if not target.exists():
        await _run(
            ExportJob(weights=str(folder), base=str(base), target=str(target), format="gguf")
        )
    return target


async def _run(job: ExportJob) -> int:
    answer: JsonObject = {}
    with tempfile.TemporaryDirectory(prefix="llmos-export-") as scratch:
        path = Path(scratch) / "job.json"
        path.write_text(job.model_dump_json(), encoding="utf-8")
        command = (sys.executable, "-P", "-m", worker.__name__, str(path))
        run = Worker(command, log=Path(scratch) / "worker.log", grace_s=_GRACE_S)
        await run.run(answer.update)
    if answer["event"] == "error":
        del answer["event"]
        raise SyscallError.from_value(ErrorValue(**answer))
    return answer["bytes"]
