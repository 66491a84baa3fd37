"""A model's files as torch reads them: a transformers folder, or one made from a GGUF file.

Owns the converted checkpoint. De-quantising a GGUF file takes many times as long as reading the
result, so it is done once, into a folder beside the file whose name carries the file's fingerprint:
a folder that is there is whole and belongs to that file. Refuses to know sequences and steps.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos.drivers import kv_blob
from llmos.drivers.contract import DeviceError
from llmos.drivers.gguf_header import DamagedFile, read_gguf_header

if TYPE_CHECKING:
    import torch

_FORM = "torch checkpoint 1"  # raise it when a conversion would come out differently


def checkpoint(path: Path) -> Path:
    """The transformers folder of a model: `path` itself, or what its GGUF file was converted to.

    The first call for a file converts it: seconds for a hundred million parameters. Two processes
    that convert at once do the work twice and agree. Raises: DeviceError when the file is missing
    or damaged, or the folder beside it cannot be written.
    """
    if path.is_dir():
        return path
    try:
        read_gguf_header(path)
        key = kv_blob.fingerprint(path, _FORM).hex()
    except DamagedFile as problem:
        raise DeviceError(str(problem)) from problem
    except OSError as problem:
        raise DeviceError(f"cannot read {path}: {problem.strerror}") from problem
    folder = path.with_name(f"{path.name}.torch-{key[:16]}")
    if not folder.is_dir():
        _place(path, folder)
    return folder


def load_model(folder: Path, *, dtype: torch.dtype, device: str, attention: str) -> Any:
    """The model of a checkpoint, ready for inference, with the named attention function.

    Raises: DeviceError when the folder holds no causal language model or is damaged.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation=attention, local_files_only=True
            )
        return model.to(device).eval().requires_grad_(False)
    except torch.OutOfMemoryError as problem:
        raise DeviceError(f"the weights of {folder.name} do not fit on {device}") from problem
    except Exception as problem:
        raise DeviceError(f"transformers cannot load {folder}: {problem}") from problem


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint. Raises: DeviceError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as problem:
        raise DeviceError(
            f"transformers cannot load the tokenizer of {folder}: {problem}"
        ) from problem


def weights_file(path: Path) -> Path:
    """The file that tells one model from another. Raises: DeviceError when there is none."""
    if path.is_file():
        return path
    found = sorted(path.glob("*.safetensors"))
    if not found:
        raise DeviceError(f"{path} holds no safetensors file")
    return found[0]


@contextmanager
def quiet() -> Generator[None]:
    """No progress bars and no advice from transformers on the terminal."""
    from transformers.utils import logging

    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()


# --- conversion -----------------------------------------------------------------------------------


def _place(path: Path, folder: Path) -> None:
    """Convert into a folder of another name, and give it its name once it is whole."""
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            _convert(path, partial)
            for file in partial.iterdir():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            partial.chmod(0o755)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as problem:
        if not folder.is_dir():  # else another process was first, with the same result
            raise DeviceError(
                f"a converted copy of {path.name} cannot be written beside it: "
                f"{problem.strerror}; free space or copy the model to a folder of your own"
            ) from problem


def _convert(path: Path, folder: Path) -> None:
    """Convert in a process of its own: it needs memory for the weights several times over, which
    this one would keep, and it talks on the terminal.
    """
    command = [sys.executable, "-m", "llmos.drivers.torch_convert", path, folder]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        *_, reason = done.stderr.strip().splitlines() or ["it was killed"]
        raise DeviceError(f"transformers cannot convert {path.name}: {reason}")
