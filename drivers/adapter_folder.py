"""A LoRA adapter as peft saves it: a folder of settings and weights, read and checked.

Owns the form of the folder. What it finds has its names and shapes checked, so that whoever applies
or converts it meets no surprise half-way. Refuses to know any model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos.drivers.contract import DeviceError

if TYPE_CHECKING:
    import torch

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")


class LoraPair(NamedTuple):
    """The change to one linear layer is `scale * b @ a`."""

    a: torch.Tensor  # (rank, inputs)
    b: torch.Tensor  # (outputs, rank)


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """A plain LoRA adapter. `pairs` is by the name of the linear layer in the base model."""

    rank: int
    alpha: float
    is_rank_stabilised: bool
    pairs: Mapping[str, LoraPair]

    @property
    def effective_alpha(self) -> float:
        """The alpha with which `alpha / rank` is this adapter's scale."""
        return self.alpha * self.rank**0.5 if self.is_rank_stabilised else self.alpha


def read_adapter(folder: Path) -> LoraAdapter:
    """Read a peft adapter folder.

    Raises: DeviceError when a file is missing or damaged, or it is more than a plain LoRA.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        settings: dict[str, Any] = json.loads((folder / SETTINGS).read_bytes())
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as problem:
        raise DeviceError(f"{folder} is no readable peft adapter: {problem}") from problem
    unserved = [
        f"{name} {settings[name]}"
        for name in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias")
        if settings.get(name)
    ]
    if settings.get("peft_type") != "LORA" or unserved:
        what = ", ".join(unserved) or f"peft_type {settings.get('peft_type')}"
        raise DeviceError(
            f"the adapter {folder.name} is more than a plain LoRA: {what}; exported, it is merged "
            "with its base, and those are full weights that can serve"
        )
    return LoraAdapter(
        rank=int(settings["r"]),
        alpha=float(settings["lora_alpha"]),
        is_rank_stabilised=bool(settings.get("use_rslora")),
        pairs=_pairs(folder, tensors),
    )


def _pairs(folder: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, LoraPair]:
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        found = _NAME.fullmatch(name)
        if found is None:
            raise DeviceError(f"the adapter {folder.name} changes more than linear layers: {name}")
        halves.setdefault(found[1], {})[found[2]] = tensor
    pairs: dict[str, LoraPair] = {}
    for layer, half in halves.items():
        if set(half) != {"A", "B"} or half["A"].shape[0] != half["B"].shape[1]:
            raise DeviceError(f"the adapter {folder.name} is damaged at {layer}")
        pairs[layer] = LoraPair(half["A"], half["B"])
    if not pairs:
        raise DeviceError(f"the adapter {folder.name} is empty")
    return pairs
