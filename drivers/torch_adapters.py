"""LoRA adapters on a torch model, through peft: attached, switched, detached.

Owns which adapters are on the model and which of them computes. The base weights are never changed,
so that with none in use the model computes what it did before. Refuses to know sequences.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos.drivers.adapter_folder import LoraAdapter, read_adapter
from llmos.drivers.contract import DeviceError

if TYPE_CHECKING:
    import torch


class _Attached(NamedTuple):
    inner_name: str  # peft's; an adapter's own name may hold a dot, which torch refuses
    bytes: int


class TorchAdapters:
    """The adapters of one model. One thread at a time."""

    def __init__(self, model: Any, *, device: str) -> None:
        self._model = model
        self._device = device
        self._layers: Any = None  # peft's, in place of linear ones while there are adapters
        self._attached: dict[str, _Attached] = {}
        self._numbers = itertools.count()
        self._in_use: str | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._attached

    def sizes(self) -> dict[str, int]:
        """Bytes of each adapter."""
        return {name: attached.bytes for name, attached in self._attached.items()}

    def attach(self, name: str, folder: Path) -> None:
        """Load a peft adapter folder; it is not in use yet.

        Raises: DeviceError when it cannot be read or is for another model; nothing has changed.
        """
        if name in self._attached:
            raise DeviceError(f"an adapter {name} is attached already")
        adapter = read_adapter(folder)
        size = self._check(name, adapter)
        inner_name = f"adapter_{next(self._numbers)}"
        try:
            self._load(inner_name, folder, adapter)
        except Exception as problem:
            self._unload(inner_name)
            raise DeviceError(f"peft cannot attach the adapter {name}: {problem}") from problem
        self._attached[name] = _Attached(inner_name, size)
        self._switch()

    def detach(self, name: str) -> None:
        """Take an adapter off the model. Raises: DeviceError when it is not attached."""
        if name not in self._attached:
            raise DeviceError(f"no adapter {name} is attached")
        if self._in_use == name:
            self._in_use = None
        self._unload(self._attached.pop(name).inner_name)
        self._switch()

    def use(self, name: str | None) -> None:
        """Compute with this adapter, or with none, from now on."""
        if name != self._in_use:
            self._in_use = name
            self._switch()

    def _load(self, inner_name: str, folder: Path, adapter: LoraAdapter) -> None:
        from peft import LoraConfig, LoraModel

        settings: Any = LoraConfig.from_pretrained(str(folder))
        settings.inference_mode = True
        if self._layers is None:
            self._layers = LoraModel(self._model, {inner_name: settings}, inner_name)
        else:
            self._layers.peft_config[inner_name] = settings
            self._layers.inject_adapter(self._model, inner_name)
        for path, pair in adapter.pairs.items():
            layer = self._model.get_submodule(path)
            for half, tensor in ((layer.lora_A, pair.a), (layer.lora_B, pair.b)):
                half[inner_name].weight.data.copy_(tensor)
        self._model.requires_grad_(False).eval()

    def _unload(self, inner_name: str) -> None:
        if self._layers is None:
            return
        if set(self._layers.peft_config) - {inner_name}:
            self._layers.delete_adapter(inner_name)
        else:
            self._layers.unload()
            self._layers = None

    def _switch(self) -> None:
        """Bring peft's layers in line with `_in_use`."""
        if self._layers is None:
            return
        if self._in_use is None:
            self._layers.disable_adapter_layers()
        else:
            self._layers.enable_adapter_layers()
            self._layers.set_adapter(self._attached[self._in_use].inner_name, inference_mode=True)

    def _check(self, name: str, adapter: LoraAdapter) -> int:
        """The adapter's bytes. Raises: DeviceError unless each of its layers is in the model."""
        total = 0
        for path, (a, b) in adapter.pairs.items():
            weight = self._weight(path)
            if weight is None or tuple(weight.shape) != (b.shape[0], a.shape[1]):
                has = "no such layer" if weight is None else f"{tuple(weight.shape)} weights there"
                raise DeviceError(
                    f"the adapter {name} is for another model: it changes {path} with "
                    f"{(b.shape[0], a.shape[1])} weights, and this model has {has}"
                )
            total += 4 * (a.numel() + b.numel())  # peft computes adapters in single precision
        return total

    def _weight(self, path: str) -> torch.Tensor | None:
        """The weights of a linear layer of the base model."""
        import torch

        try:
            module = self._model.get_submodule(path)
        except AttributeError:
            return None
        layer = getattr(module, "base_layer", module)
        return layer.weight if isinstance(layer, torch.nn.Linear) else None
