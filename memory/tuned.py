"""What `llmos tune` found: how a model runs best on a machine, and the table that shows why.

Owns a folder of small JSON files, one for each machine and model file. A record says whose it is,
and only that machine with that file reads it: another processor, number of cores, release of the
engine or training of the model has another one. Refuses to measure (`drivers/tuning.py`) and to
choose (`llmos/tuning.py`). A damaged or foreign record counts as none, with a warning.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from llmos.drivers import kv_blob
from llmos.drivers.contract import KVLayout, KVType
from llmos.drivers.llama_requantise import Format
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import Value

WeightsName = Literal["shipped"] | Format

_FORM = "tuned 1"
_logger = logging.getLogger(__name__)


class Machine(Value):
    """What measured rates depend on, beside the model."""

    cpu: str
    cores: int
    engine: str  # the library that computes, with its release


class Choice(Value):
    """A number format of the weights, and the settings to open them with."""

    weights: WeightsName = "shipped"
    threads: int | None = None
    batch_tokens: int = 512
    micro_batch_tokens: int | None = None
    kv_layout: KVLayout = "auto"
    kv_type: KVType = "f16"
    flash_attention: bool | None = None


class Row(Value):
    """One candidate as measured; `note` says why it was not chosen, where that is not its speed.

    Rates are tokens a second; `decode` by sequences in a batch. `cost_ms` is what the mix costs,
    `loss` the perplexity against the shipped file's: 0.01 is one per cent more.
    """

    choice: Choice
    bytes: int
    prefill: float | None = None
    decode: dict[int, float] = Field(default_factory=dict[int, float])
    cost_ms: float | None = None
    loss: float | None = None
    note: str = ""


class Tuned(Value):
    """A finished tuning. `made` tells that the chosen copy was made for it, and goes with it."""

    model: str
    machine: Machine
    fingerprint: str
    choice: Choice
    rows: tuple[Row, ...]
    is_quick: bool  # only formats were compared
    made: bool
    took_s: float
    tuned_at: float  # seconds since the epoch


def this_machine() -> Machine:
    """The machine that this process runs on, as far as it may use it."""
    try:
        release = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        release = "unknown"
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        engine=f"llama-cpp-python {release}",
    )


def fingerprint(source: Path) -> str:
    """What tells a model file from others. Raises: OSError."""
    return kv_blob.fingerprint(source, _FORM).hex()


def keep(folder: Path, tuned: Tuned) -> Path:
    """Keep a tuning in place of an earlier one. Raises: SyscallError("storage")."""
    path = _path(folder, tuned.machine, tuned.fingerprint)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".", delete=False) as file:
            file.write(tuned.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
    except OSError as problem:
        raise SyscallError(
            "storage",
            f"what was tuned cannot be kept in {folder}: {problem.strerror or problem}",
            path=str(folder),
        ) from problem
    return path


def recall(folder: Path, source: Path) -> Tuned | None:
    """What was found for a model file on this machine; None where nothing was, or not for it."""
    machine = this_machine()
    try:
        owner = fingerprint(source)
        path = _path(folder, machine, owner)
        tuned = Tuned.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as problem:
        reason = str(problem).splitlines()[0]
        _logger.warning("what was tuned for %s cannot be read: %s", source.name, reason)
        return None
    if (tuned.machine, tuned.fingerprint) != (machine, owner):
        _logger.warning("%s is of another machine or model: not used", path)
        return None
    return tuned


def _path(folder: Path, machine: Machine, owner: str) -> Path:
    key = hashlib.sha256(f"{machine.model_dump_json()}\0{owner}".encode()).hexdigest()
    return folder / f"{key[:24]}.json"


def _cpu_model() -> str:
    """The processor's name, and a digest of what it can do: names are vague on virtual machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    said = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {name.strip(): value.strip() for name, value in said.items()}
    name = facts.get("model name") or platform.machine()
    abilities = facts.get("flags") or facts.get("Features") or ""
    digest = hashlib.sha256(" ".join(sorted(abilities.split())).encode()).hexdigest()
    return f"{name} ({digest[:8]})"
