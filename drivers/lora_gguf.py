"""A LoRA adapter trained with peft, as the GGUF file that llama.cpp attaches.

Owns the differences between the two forms: names of layers, the order of rows in the query and key
projections, and where the scale is written. The file is made once for an adapter and a base, and
kept in the adapter's folder.

GGUF's llama models hold the rows of each query and key head with the two halves of the rotary
pairs interleaved; so do adapters, whose `b` gives those rows. `a` reads what enters the layer,
which is not reordered.
Source: llama.cpp's own converter says what it expects; this is written from the file format.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos.drivers import kv_blob
from llmos.drivers.adapter_folder import WEIGHTS, LoraAdapter, read_adapter
from llmos.drivers.contract import DeviceError
from llmos.drivers.gguf_header import DamagedFile, GgufHeader, read_gguf_header

if TYPE_CHECKING:
    import torch

_FORM = "lora gguf 1"  # raise it when a conversion would come out differently
_ARCHITECTURE = "llama"


def gguf_adapter(folder: Path, base: Path) -> Path:
    """The GGUF form of a peft adapter folder for the base model in the GGUF file `base`.

    Raises: DeviceError when the adapter cannot be read or written beside, or the base is not of the
    llama architecture.
    """
    header = base_header(base)
    heads, kv_heads = head_counts(header)
    try:
        key = kv_blob.fingerprint(folder / WEIGHTS, f"{_FORM} {heads} {kv_heads}").hex()
    except OSError as problem:
        raise DeviceError(f"{folder} is no readable peft adapter: {problem}") from problem
    target = folder / f"adapter-{key[:16]}.gguf"
    if not target.exists():
        adapter = read_adapter(folder)
        blocks = int(header.metadata[f"{_ARCHITECTURE}.block_count"])
        tensors = _tensors(adapter, blocks=blocks, heads=heads, kv_heads=kv_heads)
        _write(target, tensors, alpha=adapter.effective_alpha)
    return target


_HEAD_KEYS = ("attention.head_count", "attention.head_count_kv")


def head_counts(header: GgufHeader) -> tuple[int, int]:
    """The query heads and the key heads of a llama model."""
    heads, kv_heads = (int(header.metadata[f"{_ARCHITECTURE}.{key}"]) for key in _HEAD_KEYS)
    return heads, kv_heads


def base_header(base: Path) -> GgufHeader:
    """The header of a llama model's GGUF file. Raises: DeviceError."""
    try:
        header = read_gguf_header(base)
    except DamagedFile as problem:
        raise DeviceError(str(problem)) from problem
    except OSError as problem:
        raise DeviceError(f"cannot read {base}: {problem.strerror}") from problem
    found = header.metadata.get("general.architecture")
    if found != _ARCHITECTURE:
        raise DeviceError(
            f"adapters are converted for {_ARCHITECTURE} models, and {base.name} is a {found} model"
        )
    return header


def _tensors(
    adapter: LoraAdapter, *, blocks: int, heads: int, kv_heads: int
) -> dict[str, torch.Tensor]:
    """The adapter's matrices by their GGUF names. Raises: DeviceError for an unknown layer."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.LLAMA, blocks)
    tensors: dict[str, torch.Tensor] = {}
    for layer, (a, b) in adapter.pairs.items():
        name = names.get_name(layer)
        if name is None:
            raise DeviceError(f"{layer} is no layer of a llama model with {blocks} blocks")
        if layer.endswith("q_proj"):
            b = interleaved(b, heads)
        elif layer.endswith("k_proj"):
            b = interleaved(b, kv_heads)
        tensors[f"{name}.weight.lora_a"] = a
        tensors[f"{name}.weight.lora_b"] = b
    return tensors


def interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows `(heads * dim, columns)` with each head's two halves taken in turn."""
    outputs, rank = rows.shape
    halves = rows.reshape(heads, 2, outputs // heads // 2, rank)
    return halves.transpose(1, 2).reshape(outputs, rank)


def _write(target: Path, tensors: dict[str, torch.Tensor], *, alpha: float) -> None:
    """Write the file; a reader at any moment finds a whole one or none. Raises: DeviceError."""
    from gguf import GGUFType, GGUFWriter, Keys

    try:
        number, partial = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(number)
        try:
            writer: Any = GGUFWriter(partial, _ARCHITECTURE)
            writer.add_type(GGUFType.ADAPTER)
            writer.add_string(Keys.Adapter.TYPE, "lora")
            writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
            for name, tensor in tensors.items():
                writer.add_tensor(name, tensor.float().contiguous().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            Path(partial).replace(target)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as problem:
        raise DeviceError(
            f"the adapter's GGUF form cannot be written to {target.parent}: {problem.strerror}"
        ) from problem
