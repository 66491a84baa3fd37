"""A trained task model on disk: what its folder holds, read and written without torch.

    task.json          method, base, max_length_tokens, heads (name, objective, labels)
    head.safetensors   the heads' weights, by the place of the head in the list
    body/              a whole encoder with its tokenizer (method "full"), or
    adapter/           a peft adapter on the base's encoder, or
    adapters/PLACE/    one such adapter for each head; then the heads' file has a router too, which
                       says whose adapter a text is for
    classes.safetensors  of adapters that can be joined: sums over each class's vectors

Owns these names and the settings file. Refuses to know tensors and what is computed with them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llmos.drivers.contract import DeviceError

TaskObjective = Literal["classify", "tag", "embed"]
Layout = Literal["body", "adapter", "adapters", "base"]

SETTINGS, HEADS = "task.json", "head.safetensors"
BODY, ADAPTER, ADAPTERS = "body", "adapter", "adapters"
CLASSES = "classes.safetensors"


@dataclass(frozen=True, slots=True)
class TaskHead:
    """What one head says of a text. `labels` are in the order of the head's outputs.

    `reads_case` is whether each word's way of writing (capitals, digits) is given to the body,
    whose tokenizer may not tell.
    """

    name: str
    objective: TaskObjective
    labels: tuple[str, ...]
    reads_case: bool = False


@dataclass(frozen=True, slots=True)
class TaskFolder:
    """A task model's folder. `base` is the name of the encoder that it was trained from."""

    folder: Path
    method: str
    base: str
    max_length_tokens: int
    heads: tuple[TaskHead, ...]

    @property
    def layout(self) -> Layout:
        """Where the body's trained weights are; "base" is nowhere, only the heads were trained."""
        found: tuple[Layout, ...] = (BODY, ADAPTER, ADAPTERS)
        present: list[Layout] = [name for name in found if (self.folder / name).is_dir()]
        return present[0] if present else "base"

    @property
    def objective(self) -> TaskObjective:
        """The objective of the first head, which is the only one unless tasks were mixed."""
        return self.heads[0].objective

    @property
    def labels(self) -> tuple[str, ...]:
        """All heads' labels, none twice; of a single head, in the order of its outputs."""
        return tuple(dict.fromkeys(label for head in self.heads for label in head.labels))

    def head(self, name: str | None) -> int:
        """The place of a head by its name; None is the first. Raises: DeviceError."""
        if name is None:
            return 0
        for place, head in enumerate(self.heads):
            if head.name == name:
                return place
        known = ", ".join(head.name for head in self.heads)
        raise DeviceError(f"{self.folder.name} has no task {name}; it has {known}")


def is_task_folder(folder: Path) -> bool:
    """Whether a folder says that it is a task model."""
    return (folder / SETTINGS).is_file()


def read_task(folder: Path) -> TaskFolder:
    """The task model in a folder.

    Raises: DeviceError when the settings or the heads are missing or damaged.
    """
    path = folder / SETTINGS
    try:
        settings: dict[str, Any] = json.loads(path.read_bytes())
        heads = tuple(_head(fields) for fields in settings["heads"])
        found = TaskFolder(
            folder,
            method=str(settings["method"]),
            base=str(settings["base"]),
            max_length_tokens=int(settings["max_length_tokens"]),
            heads=heads,
        )
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DeviceError(f"{folder} is no readable task model: {problem!r}") from problem
    if not heads or any(head.objective != "embed" and not head.labels for head in heads):
        raise DeviceError(f"{path} names no labels")
    if found.objective != "embed" and not (folder / HEADS).is_file():
        raise DeviceError(f"{folder} has no {HEADS}")
    return found


def write_settings(
    folder: Path, *, method: str, base: str, max_length_tokens: int, heads: Sequence[TaskHead]
) -> None:
    """Write the settings file of a task model. Raises: OSError."""
    settings = {
        "objective": heads[0].objective,
        "method": method,
        "base": base,
        "max_length_tokens": max_length_tokens,
        "labels": heads[0].labels,
        "heads": [asdict(head) for head in heads],
    }
    (folder / SETTINGS).write_text(json.dumps(settings, ensure_ascii=False, indent=1) + "\n")


def _head(fields: dict[str, Any]) -> TaskHead:
    if fields["objective"] not in ("classify", "tag", "embed"):
        raise ValueError(f"unknown objective {fields['objective']}")
    return TaskHead(
        name=str(fields["name"]),
        objective=fields["objective"],
        labels=tuple(str(label) for label in fields["labels"]),
        reads_case=bool(fields.get("reads_case")),
    )
