"""llama.cpp with nothing around it: what a device can do at most, for `throughput`.

The low-level API with as many sequences as prompts, each with a KV stream of its own. Prompts are
read first, in chunks; then every step decodes one token of each sequence in one batch, greedily, to
a fixed length. No stop texts, no streaming, no sampling settings.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

BATCH_TOKENS = 512


class RawLoop:
    """One open model. Raises: RuntimeError where llama.cpp fails."""

    def __init__(self, path: Path, *, sequences: int, window: int, threads: int) -> None:
        api: Any = llama_cpp
        self._api = api
        api.llama_backend_init()
        self._silence = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self._silence, ctypes.c_void_p(0))
        model = api.llama_model_default_params()
        model.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(os.fsencode(path), model)
        context = api.llama_context_default_params()
        context.n_ctx = window * sequences
        context.n_seq_max = sequences
        context.n_batch = context.n_ubatch = BATCH_TOKENS
        context.n_threads = context.n_threads_batch = threads
        context.kv_unified = False
        context.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = api.llama_init_from_model(self._model, context)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot open {path}")
        self._vocabulary = api.llama_model_get_vocab(self._model)
        self._vocabulary_size: int = api.llama_vocab_n_tokens(self._vocabulary)
        self._batch = api.llama_batch_init(BATCH_TOKENS, 0, 1)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without special ones."""
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 8))()
        count = self._api.llama_tokenize(
            self._vocabulary, raw, len(raw), room, len(room), True, False
        )
        return list(room[:count])

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
        """Continue every prompt by `new_tokens` tokens; returns how many were made."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
        next_tokens = [self._read(number, prompt) for number, prompt in enumerate(prompts)]
        for step in range(new_tokens - 1):
            for number, prompt in enumerate(prompts):
                self._put(number, next_tokens[number], number, len(prompt) + step, is_last=True)
            next_tokens = self._decode(len(prompts), rows=len(prompts))
        return new_tokens * len(prompts)

    def close(self) -> None:
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

    def _read(self, sequence: int, prompt: Sequence[int]) -> int:
        """Compute a prompt; returns the first new token."""
        made: list[int] = []
        for start in range(0, len(prompt), BATCH_TOKENS):
            chunk = prompt[start : start + BATCH_TOKENS]
            for place, token in enumerate(chunk):
                position = start + place
                is_last = position == len(prompt) - 1
                self._put(place, token, sequence, position, is_last=is_last)
            is_whole = start + len(chunk) == len(prompt)
            made = self._decode(len(chunk), rows=1 if is_whole else 0)
        return made[0]

    def _put(self, place: int, token: int, sequence: int, position: int, *, is_last: bool) -> None:
        batch = self._batch
        batch.token[place] = token
        batch.pos[place] = position
        batch.n_seq_id[place] = 1
        batch.seq_id[place][0] = sequence
        batch.logits[place] = is_last

    def _decode(self, tokens: int, *, rows: int) -> list[int]:
        """Compute the batch; returns the most likely token of each row that asked for one."""
        self._batch.n_tokens = tokens
        if status := self._api.llama_decode(self._context, self._batch):
            raise RuntimeError(f"llama_decode returned {status}")
        if not rows:
            return []
        logits = np.ctypeslib.as_array(
            self._api.llama_get_logits(self._context), shape=(rows, self._vocabulary_size)
        )
        best: list[int] = logits.argmax(axis=1).tolist()
        return best
