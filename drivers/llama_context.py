"""A llama.cpp context: its settings checked, its memory planned, then made.

Owns what can be refused before the library sees it, because what the library finds out too late
ends the process. The choice of KV layout is here too: streams unless the unified buffer is asked
for (docs/decisions/0004 has the numbers).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from llmos.drivers.contract import MOST_DRAFT_TOKENS, DeviceError, ModelInfo, ModelSpec
from llmos.drivers.llama_library import listen, load_library

_FREE_SHARE = 0.9  # most of the free memory that the KV cache may take
_CELL_BLOCK = 256  # llama.cpp rounds the cells of a buffer up to this


class Context(NamedTuple):
    """An open context, and the bytes of its buffers by kind."""

    pointer: Any
    buffers: Mapping[str, int]


def open_context(model: Any, spec: ModelSpec, info: ModelInfo) -> Context:
    """A context over an open model. Raises: DeviceError with llama.cpp's reason."""
    library = load_library()
    parameters = library.llama_context_default_params()
    parameters.n_ctx = info.kv_cells or info.context_tokens * spec.sequences
    parameters.n_seq_max = spec.sequences
    # One token of each sequence asks for logits, and each guess of a draft. Room for every token
    # would cost a hundred megabytes, and asking for more than there is room for ends the process.
    parameters.n_outputs_max = spec.sequences + MOST_DRAFT_TOKENS
    parameters.n_batch = max(spec.batch_tokens, spec.sequences)
    parameters.n_ubatch = spec.micro_batch_tokens or parameters.n_batch
    parameters.kv_unified = info.kv_cells is not None
    parameters.type_k = parameters.type_v = getattr(library, f"GGML_TYPE_{spec.kv_type.upper()}")
    parameters.flash_attn_type = _flash_attention(library, spec)
    threads = spec.threads or len(os.sched_getaffinity(0))
    parameters.n_threads = parameters.n_threads_batch = threads
    with listen() as heard:
        pointer = library.llama_init_from_model(model, parameters)
    if not pointer:
        raise DeviceError(f"llama.cpp cannot make a context: {heard.reason}")
    return Context(pointer, heard.buffers)


def check_spec(spec: ModelSpec) -> None:
    """Raises: DeviceError for settings that llama.cpp would ignore or die of."""
    if spec.device != "cpu":
        raise DeviceError(f"llama_cpp serves the device cpu here, not {spec.device}")
    if spec.dtype != "auto":
        raise DeviceError("a GGUF file has its own number format; leave dtype at auto")
    most = load_library().llama_max_parallel_sequences()
    if not 1 <= spec.sequences <= most:
        raise DeviceError(f"llama.cpp holds 1 to {most} sequences, not {spec.sequences}")
    if spec.batch_tokens < 1 or spec.context_tokens < 1:
        raise DeviceError("batch_tokens and context_tokens must be at least 1")
    micro = spec.micro_batch_tokens
    if micro is not None and not 1 <= micro <= spec.batch_tokens:
        raise DeviceError(f"micro_batch_tokens must be 1 to batch_tokens ({spec.batch_tokens})")
    if spec.kv_type == "q8_0" and spec.flash_attention is False:
        raise DeviceError(
            "kv_type q8_0 needs flash attention; leave flash_attention unset or take kv_type f16"
        )
    if spec.kv_cells is not None and spec.kv_layout != "unified":
        raise DeviceError("kv_cells is the size of the unified buffer; set kv_layout to unified")


def planned_cells(spec: ModelSpec, info: ModelInfo) -> int | None:
    """The cells of the unified buffer, as many as fit unless told; None for streams.

    Raises: DeviceError when the KV cache would not fit; the system would kill us instead.
    """
    import psutil

    free = int(psutil.virtual_memory().available * _FREE_SHARE)
    window = _rounded(info.context_tokens)
    if spec.kv_layout != "unified":
        _check_fits(window * spec.sequences, info, free)
        return None
    fitting = free // max(1, info.kv_bytes_per_token) // _CELL_BLOCK * _CELL_BLOCK
    cells = _rounded(spec.kv_cells or max(window, min(window * spec.sequences, fitting)))
    if cells < window:
        raise DeviceError(f"kv_cells must be at least the window of {info.context_tokens} tokens")
    _check_fits(cells, info, free)
    return cells


def _check_fits(cells: int, info: ModelInfo, free: int) -> None:
    needed = cells * info.kv_bytes_per_token
    if needed > free:
        raise DeviceError(
            f"{info.sequences} sequences of {info.context_tokens} tokens need {needed / 2**30:.1f} "
            f"GiB of KV cache and {free / 2**30:.1f} GiB are free; ask for fewer or shorter ones, "
            "or for kv_layout unified with kv_cells that fit"
        )


def _flash_attention(library: Any, spec: ModelSpec) -> int:
    """llama.cpp's number for the setting; KV in 8 bits needs it on."""
    wanted = True if spec.kv_type == "q8_0" else spec.flash_attention
    name = {None: "AUTO", True: "ENABLED", False: "DISABLED"}[wanted]
    value: int = getattr(library, f"LLAMA_FLASH_ATTN_TYPE_{name}")
    return value


def _rounded(tokens: int) -> int:
    return math.ceil(tokens / _CELL_BLOCK) * _CELL_BLOCK
