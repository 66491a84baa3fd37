"""What a training job takes from versions other than its base: rows to replay, adapters to join.

Refuses to know who asks: whether a process may read the rows is `learning.py`'s matter. Any thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from llmos.memory.registry import Registry
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.learning import Finetune
from llmos.syscalls.recipe import ReplaySpec


def replayed_files(registry: Registry, replay: ReplaySpec | None) -> tuple[str, ...]:
    """The files of rows that are replayed: those that are named, then those of the versions.

    Raises: SyscallError("unknown_model"); ("invalid") for a version whose rows are gone.
    """
    if replay is None:
        return ()
    return (*replay.paths, *(_rows_of(registry, name) for name in replay.versions))


def check_join(call: Finetune) -> None:
    """Refuse to join what is not trained apart. Raises: SyscallError("invalid")."""
    if not call.join:
        return
    if call.objective != "classify" or call.method != "lora" or call.tasks:
        _refuse("adapters of the objective classify and the method lora are joined, and no mixture")
    if len(set(call.join)) < len(call.join):
        _refuse("a version comes twice")


def joined_folders(registry: Registry, call: Finetune, *, base: str) -> tuple[str, ...]:
    """Where the versions are that a call joins, their files checked.

    Raises: SyscallError("unknown_model"); ("invalid") for a version that is no task model of this
    base; ("storage").
    """
    found: list[str] = []
    for name in call.join:
        version = registry.get(name)
        if version.kind != "task" or version.base != base:
            _refuse(
                f"{name} is a version of kind {version.kind} on {version.base}; what is joined are "
                f"task models on {base}"
            )
        found.append(str(registry.load(name)))
    return tuple(found)


def _rows_of(registry: Registry, name: str) -> str:
    path = registry.get(name).card.get("data", {}).get("path")
    if not isinstance(path, str) or not Path(path).exists():
        raise SyscallError(
            "invalid",
            f"replay: the rows that {name} was trained on are not here any more; name their file "
            "in paths",
            field="replay",
        )
    return path


def _refuse(why: str) -> NoReturn:
    raise SyscallError("invalid", f"join: {why}", field="join")
