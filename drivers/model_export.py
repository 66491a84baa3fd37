"""A version merged with its base, for other programs: `python -m llmos.drivers.model_export JOB`.

Owns one job, a JSON file: which weights, and in which form and format they are written. Runs in an
OS process of its own: it needs memory for the weights several times over. On standard output it
says one JSON line, `done` with the bytes that were written, or `error` with a code and a message.
Whatever is written appears under its name once it is whole and durable. Refuses to know the
registry.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmos.drivers.contract import DeviceError
from llmos.drivers.gguf_weights import WholeFormat, write_gguf
from llmos.drivers.llama_requantise import Format, requantised
from llmos.drivers.torch_weights import checkpoint, quiet
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import Value

if TYPE_CHECKING:
    import torch

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".gguf")


class ExportJob(Value):
    """Write `weights`, changed by the peft folder `adapter`, to `target`.

    `weights` is a transformers folder or a GGUF file. `base` is the model's own GGUF file, which a
    new one takes its vocabulary from. `quantize` is the format of a GGUF file.
    """

    weights: str
    base: str
    adapter: str | None = None
    target: str
    format: Literal["safetensors", "gguf"]
    quantize: Format = "F16"


def export(job: ExportJob) -> int:
    """Do a job; returns the bytes written.

    Raises: SyscallError: "not_available" for what cannot be merged or written so, "storage" when
    the disk refuses.
    """
    target = Path(job.target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _partial(target) as partial:
            if job.format == "gguf":
                _write_gguf(job, partial)
            else:
                _write_folder(job, partial)
            _settle(partial)
            if target.is_dir():
                shutil.rmtree(target)
            partial.replace(target)
    except DeviceError as problem:
        raise SyscallError("not_available", str(problem)) from problem
    except OSError as problem:
        raise _unwritable(target, problem.strerror) from problem
    return sum(file.stat().st_size for file in _files(target))


def main(arguments: list[str]) -> None:
    """Do the job in the file that is named, and say how it went."""
    job = ExportJob.model_validate_json(Path(arguments[0]).read_bytes())
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        answer: dict[str, Any] = {"event": "done", "bytes": export(job)}
    except SyscallError as problem:
        answer = {"event": "error", **problem.value().model_dump(mode="json")}
    print(json.dumps(answer), file=told, flush=True)


# --- writing --------------------------------------------------------------------------------------


def _write_gguf(job: ExportJob, target: Path) -> None:
    if not Path(job.base).is_file():
        raise DeviceError(
            "a GGUF file takes its vocabulary from the base's, and the base is no GGUF file; "
            "export safetensors, and convert those with llama.cpp's own converter"
        )
    model = _merged(job)
    first: WholeFormat = "F16" if job.quantize == "F16" else "F32"
    weights: dict[str, torch.Tensor] = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    write_gguf(weights, Path(job.base), target, format=first)
    if job.quantize != first:
        try:
            copy = requantised(target, job.quantize)
        except DeviceError as problem:  # the file is of our own making, so it is the disk
            raise _unwritable(Path(job.target), str(problem)) from problem
        copy.replace(target)


def _write_folder(job: ExportJob, target: Path) -> None:
    """The merged weights in the number format of the base, with all that the base's folder has."""
    import torch
    from safetensors import SafetensorError

    model = _merged(job)
    source = checkpoint(Path(job.weights))
    settings = json.loads((source / "config.json").read_bytes())
    dtype = settings.get("dtype") or settings.get("torch_dtype") or "float32"
    target.mkdir()
    try:
        with quiet():
            model.to(getattr(torch, dtype)).save_pretrained(target)
    except SafetensorError as problem:
        raise _unwritable(Path(job.target), str(problem)) from problem
    for file in sorted(source.iterdir()):
        if (
            file.is_file()
            and not file.name.endswith(_WEIGHTS)
            and not (target / file.name).exists()
        ):
            shutil.copyfile(file, target / file.name)


def _merged(job: ExportJob) -> Any:
    """The model with its adapter worked in, in single precision. Raises: DeviceError."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = checkpoint(Path(job.weights))
    try:
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True
            )
            if job.adapter is None:
                return model
            from peft import PeftModel

            adapted: Any = PeftModel.from_pretrained(model, job.adapter)
            if not hasattr(adapted, "merge_and_unload"):
                raise DeviceError("an adapter of this kind cannot be merged into weights")
            return adapted.merge_and_unload(safe_merge=True)
    except DeviceError:
        raise
    except Exception as problem:
        raise DeviceError(f"the version cannot be merged with its base: {problem}") from problem


@contextmanager
def _partial(target: Path) -> Generator[Path]:
    """A name beside the target for what is not whole yet; nothing of it is left behind."""
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        yield Path(folder) / target.name


def _unwritable(target: Path, reason: str | None) -> SyscallError:
    return SyscallError(
        "storage", f"{target} cannot be written: {reason}; free space there", path=str(target)
    )


def _files(path: Path) -> list[Path]:
    return [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]


def _settle(path: Path) -> None:
    """Make files durable, and readable as any other file is."""
    for file in _files(path):
        file.chmod(0o644)
        with file.open("rb") as written:
            os.fsync(written.fileno())


if __name__ == "__main__":
    main(sys.argv[1:])
