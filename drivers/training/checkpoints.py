"""A run's checkpoints: folders that are whole or are not there.

Owns the folder of a job's checkpoints: `step-N`, from which the run goes on, and `best-N`, the
weights that scored best. Each is written under another name, flushed, and renamed; only then is the
one before removed. So a crash or a full disk at any moment leaves the one before. Refuses to know
what the tensors mean. It does not protect against a disk that loses what it acknowledged.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonObject

if TYPE_CHECKING:
    import torch

_TENSORS, _NOTES = "tensors.safetensors", "notes.json"
_STEP, _BEST = "step", "best"


class Checkpoint(NamedTuple):
    """What was kept at a step: tensors by name, and notes."""

    step: int
    path: Path
    tensors: dict[str, torch.Tensor]
    notes: JsonObject


class Checkpoints:
    """The checkpoints in one folder, for one writer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], notes: JsonObject) -> Path:
        """Keep the run's state at a step in place of the one before.

        Raises: SyscallError("storage"); the one before is then as it was.
        """
        return self._write(_STEP, step, tensors, notes)

    def save_best(self, step: int, weights: Mapping[str, torch.Tensor], notes: JsonObject) -> Path:
        """Keep a step's weights in place of the best ones before. Raises: as `save`."""
        return self._write(_BEST, step, weights, notes)

    def last(self) -> Checkpoint | None:
        """The state to go on from. Raises: SyscallError("storage") when it cannot be read."""
        return self._read(_STEP)

    def best(self) -> Checkpoint | None:
        """The weights that scored best. Raises: as `last`."""
        return self._read(_BEST)

    def last_step(self) -> int | None:
        """The step of the last checkpoint, nothing read."""
        found = self._found(_STEP)
        return found[-1][0] if found else None

    def _write(
        self, kind: str, step: int, tensors: Mapping[str, torch.Tensor], notes: JsonObject
    ) -> Path:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        place = self._folder / f"{kind}-{step}"
        partial = self._folder / f".{kind}-{step}.partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file({name: one.contiguous() for name, one in tensors.items()}, partial / _TENSORS)
            (partial / _NOTES).write_text(json.dumps(notes), encoding="utf-8")
            for name in (_TENSORS, _NOTES):
                _flush(partial / name)
            if place.exists():  # the same step again, after a resume
                shutil.rmtree(place)
            partial.rename(place)
            _flush(self._folder)
            for _, old in self._found(kind):
                if old != place:
                    shutil.rmtree(old)
        except (OSError, SafetensorError) as problem:
            shutil.rmtree(partial, ignore_errors=True)
            raise SyscallError(
                "storage",
                f"the checkpoint of step {step} cannot be written to {self._folder}: {problem}; "
                "the one before is kept. Free space and issue the same call again: it goes on "
                "from there",
                path=str(self._folder),
                step=step,
            ) from problem
        return place

    def _read(self, kind: str) -> Checkpoint | None:
        from safetensors import SafetensorError
        from safetensors.torch import load

        found = self._found(kind)
        if not found:
            return None
        step, path = found[-1]
        try:
            # Read, not mapped: the file goes when the next checkpoint comes.
            tensors = load((path / _TENSORS).read_bytes())
            notes: JsonObject = json.loads((path / _NOTES).read_bytes())
        except (OSError, ValueError, SafetensorError) as problem:
            raise SyscallError(
                "storage",
                f"the checkpoint {path} cannot be read: {problem}; remove it to start over",
                path=str(path),
            ) from problem
        return Checkpoint(step, path, tensors, notes)

    def _found(self, kind: str) -> list[tuple[int, Path]]:
        """Checkpoints of a kind, oldest first; two only where a crash came before the removal."""
        if not self._folder.is_dir():
            return []
        return sorted(
            (int(path.name.split("-")[1]), path) for path in self._folder.glob(f"{kind}-*")
        )


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder by `write`; a reader at any moment finds it whole, the old or the new.

    Raises: SyscallError("storage").
    """
    from safetensors import SafetensorError

    partial = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
    try:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        for path in partial.rglob("*"):
            if path.is_file():
                _flush(path)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as problem:
        shutil.rmtree(partial, ignore_errors=True)
        raise SyscallError(
            "storage", f"the version cannot be written to {folder}: {problem}", path=str(folder)
        ) from problem


def _flush(path: Path) -> None:
    """Have the system write a file or a folder's entries to the disk. Raises: OSError."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
