"""A GGUF file as a transformers checkpoint: `python -m llmos.drivers.torch_convert FILE FOLDER`.

Owns what the checkpoint holds: de-quantised weights as safetensors, settings, tokenizer and chat
template. Quantised weights come out in half precision, which holds what a block format can say;
files in a wider format keep theirs. Fills the folder, and leaves it to the caller to put it in
its place.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmos.drivers.gguf_header import read_gguf_header

# GGUF's general.file_type: these are wider than half precision, or not in its range.
_OWN_DTYPE = {0: "float32", 32: "bfloat16"}
# Vocabularies that were learned with every digit set apart, which transformers does not rebuild.
_DIGITS_APART = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})


def main(arguments: Sequence[str]) -> None:
    """Convert the file in `arguments[0]` into the empty folder in `arguments[1]`."""
    source, folder = map(Path, arguments)
    metadata = read_gguf_header(source).metadata
    dtype = _OWN_DTYPE.get(metadata.get("general.file_type", -1), "float16")
    save_weights(source, folder, dtype)
    save_tokenizer(source, folder, pre=metadata.get("tokenizer.ggml.pre"))


def save_weights(source: Path, folder: Path, dtype: str) -> None:
    """Write the de-quantised weights and the settings."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model: Any = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=getattr(torch, dtype),
        quantization_config=GgufConfig(dequantize=True),
        local_files_only=True,
    )
    # The weights are plain tensors now; the model says otherwise, and would refuse to be saved.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)


def save_tokenizer(source: Path, folder: Path, *, pre: str | None) -> None:
    """Write the tokenizer; `pre` is GGUF's name for how text is split before it is merged."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Sequence, Split
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(
        source.parent, gguf_file=source.name, local_files_only=True
    )
    backend = tokenizer.backend_tokenizer
    if pre in _DIGITS_APART:
        apart = Split(Regex(r"\p{N}"), "isolated")
        backend.pre_tokenizer = Sequence([apart, backend.pre_tokenizer])
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
