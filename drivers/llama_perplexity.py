"""How well a GGUF file predicts a text: what a change of number format costs, measured.

Owns a small context of its own, because a text is scored at all of its positions and a driver's
steps ask for one a sequence. The figure is only for comparing two files on the same tokens.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmos.drivers.contract import DeviceError, KVType
from llmos.drivers.llama_library import listen, load_library
from llmos.drivers.llama_model import LlamaModel

WINDOW_TOKENS = 512
_STEP_TOKENS = 128  # logits of so many positions lie in memory at once


def cross_entropy(
    path: Path,
    tokens: Sequence[int],
    *,
    kv_type: KVType = "f16",
    flash_attention: bool | None = None,
    threads: int | None = None,
) -> float:
    """The mean of -log p of each token after those before it in its window, in nats.

    Perplexity is its exponential. Windows of 512 tokens stand alone; a rest of fewer than two
    tokens is left out. Raises: DeviceError.
    """
    model = LlamaModel(path)
    try:
        with _context(model, kv_type, flash_attention, threads) as context:
            total, scored = 0.0, 0
            for start in range(0, len(tokens), WINDOW_TOKENS):
                window = tokens[start : start + WINDOW_TOKENS]
                if len(window) >= 2:
                    total += _score(model, context, window)
                    scored += len(window) - 1
    finally:
        model.close()
    if not scored:
        raise DeviceError("a text of fewer than two tokens cannot be scored")
    return total / scored


def loss(entropy: float, reference: float) -> float:
    """How much larger a perplexity is than another, from their logarithms: 0.01 is 1% more."""
    return math.expm1(entropy - reference)


@contextmanager
def _context(
    model: LlamaModel, kv_type: KVType, flash_attention: bool | None, threads: int | None
) -> Generator[Any]:
    library = load_library()
    parameters: Any = library.llama_context_default_params()
    parameters.n_ctx = min(WINDOW_TOKENS, library.llama_model_n_ctx_train(model.pointer))
    parameters.n_batch = parameters.n_ubatch = _STEP_TOKENS
    parameters.n_threads = parameters.n_threads_batch = threads or len(os.sched_getaffinity(0))
    if flash_attention is not None:
        state = "ENABLED" if flash_attention else "DISABLED"
        parameters.flash_attn_type = getattr(library, f"LLAMA_FLASH_ATTN_TYPE_{state}")
    if kv_type == "q8_0":
        parameters.type_k = parameters.type_v = library.GGML_TYPE_Q8_0
    with listen() as heard:
        context = library.llama_init_from_model(model.pointer, parameters)
    if not context:
        raise DeviceError(f"llama.cpp cannot make a context to score a text: {heard.reason}")
    try:
        yield context
    finally:
        library.llama_free(context)


def _score(model: LlamaModel, context: Any, window: Sequence[int]) -> float:
    """The sum of -log p of the tokens of one window but its first."""
    library = load_library()
    library.llama_memory_clear(library.llama_get_memory(context), True)
    total = 0.0
    for start in range(0, len(window) - 1, _STEP_TOKENS):
        fed = window[start : min(start + _STEP_TOKENS, len(window) - 1)]
        logits = _logits(library, context, fed, start, model.vocabulary.size)
        expected = np.asarray(window[start + 1 : start + 1 + len(fed)])
        total -= float(_log_probabilities(logits, expected).sum())
    return total


def _logits(
    library: Any, context: Any, tokens: Sequence[int], position: int, vocabulary: int
) -> NDArray[np.float32]:
    """Logits `(tokens, vocabulary)` after each of some tokens, until the next call."""
    batch: Any = library.llama_batch_init(len(tokens), 0, 1)
    try:
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = position + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = 1
        batch.n_tokens = len(tokens)
        with listen() as heard:
            status: int = library.llama_decode(context, batch)
    finally:
        library.llama_batch_free(batch)
    if status:
        raise DeviceError(f"llama.cpp cannot score a text (status {status}): {heard.reason}")
    pointer = library.llama_get_logits(context)
    return np.ctypeslib.as_array(pointer, (len(tokens), vocabulary))


def _log_probabilities(
    logits: NDArray[np.float32], tokens: NDArray[np.int64]
) -> NDArray[np.float64]:
    """log p of `tokens` `(n,)` by the rows of `logits` `(n, vocabulary)`."""
    highest = logits.max(axis=1, keepdims=True)
    sums = np.exp(logits - highest).sum(axis=1, dtype=np.float64)
    chosen = np.take_along_axis(logits - highest, tokens[:, None], axis=1)[:, 0]
    return chosen.astype(np.float64) - np.log(sums)
