"""Weights of a transformers llama model as a GGUF file, with another GGUF file's vocabulary.

A model that was trained from a GGUF file has its tokenizer, its chat template and its shape; only
the weights differ. So all that the base's file says of itself is copied, and the tensors are
written anew. Owns the order of rows in the query and key projections, which GGUF's llama models
hold with the two halves of the rotary pairs interleaved. Refuses architectures other than llama.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmos.drivers.contract import DeviceError
from llmos.drivers.lora_gguf import base_header, head_counts, interleaved

if TYPE_CHECKING:
    import torch

WholeFormat = Literal["F16", "F32"]

_FILE_TYPES: Mapping[WholeFormat, int] = {"F32": 0, "F16": 1}
_OWN_FIELDS = ("general.file_type", "general.quantization_version", "general.architecture")


def write_gguf(
    weights: Mapping[str, torch.Tensor], base: Path, target: Path, *, format: WholeFormat
) -> None:
    """Write weights, by their transformers names, as the GGUF file `target`.

    Vectors stay in single precision, as llama.cpp wants them. Raises: DeviceError for another
    architecture or a tensor that the base does not have; OSError.
    """
    from gguf import GGUFReader, GGUFWriter

    header = base_header(base)
    heads, kv_heads = head_counts(header)
    reader: Any = GGUFReader(base)
    writer: Any = GGUFWriter(target, header.metadata["general.architecture"])
    try:
        _copy_fields(reader, writer)
        writer.add_file_type(_FILE_TYPES[format])
        names = _tensor_names(int(header.metadata["llama.block_count"]))
        known = {
            tensor.name: tuple(int(n) for n in tensor.shape[::-1]) for tensor in reader.tensors
        }
        for name, tensor in weights.items():
            stem, _, ending = name.rpartition(".")
            found = names.get_name(stem)
            if found is None:
                raise DeviceError(f"{name} is no tensor of a llama model")
            if stem.endswith("q_proj"):
                tensor = interleaved(tensor, heads)
            elif stem.endswith("k_proj"):
                tensor = interleaved(tensor, kv_heads)
            target_name = f"{found}.{ending}"
            shape = known.pop(target_name, None)
            if shape is not None and shape != tuple(tensor.shape):
                raise DeviceError(f"{name} has shape {tuple(tensor.shape)}, the base's has {shape}")
            values = tensor.float().contiguous().numpy()
            is_wide = format == "F32" or tensor.dim() == 1
            writer.add_tensor(target_name, values if is_wide else values.astype("float16"))
        missing = [name for name in known if name != "rope_freqs.weight"]
        if missing:
            raise DeviceError(f"the weights lack {', '.join(missing[:3])} of the base")
        for tensor in reader.tensors:
            if tensor.name in known:  # no weights: the frequencies of rotary positions
                writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _tensor_names(blocks: int) -> Any:
    from gguf import MODEL_ARCH, get_tensor_name_map

    return get_tensor_name_map(MODEL_ARCH.LLAMA, blocks)


def _copy_fields(reader: Any, writer: Any) -> None:
    """All that the base says of itself, but for what is about its numbers."""
    from gguf import GGUFValueType

    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in _OWN_FIELDS:
            continue
        kind = field.types[0]
        part = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, part)
