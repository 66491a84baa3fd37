"""llama.cpp as a device: one GGUF model, many sequences in one context, on the CPU.

Owns the context, through the low-level API of llama-cpp-python; what its KV cache holds and how the
layouts differ is in `llama_kv.py`, with what that means for the passes of a step: mixed prefill
and decode is one `llama_batch`, or several.

The same steps give the same logits, bit for bit. Other steps over the same tokens need not: chunks
of 64 tokens and more take another flash attention kernel than smaller ones, and with several
threads a decode sums by the shape of its batch. With the Q4_1 file, whose kernels round activations
to 8 bits, that moves logits by up to 0.8, enough to turn greedy text at a tie.

An adapter belongs to the whole context: a step has one, and the next step may switch it.

What this does not protect against: `GGML_ASSERT` inside the library ends the process. Files and
arguments are checked before it sees them; damage inside the tensors shows as a step whose logits
are not finite, or as wrong text.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmos.drivers import kv_blob
from llmos.drivers.checks import check_empty, check_feeds, check_fits, check_kept, check_sequence
from llmos.drivers.contract import (
    Allocation,
    DeviceError,
    Feed,
    ModelInfo,
    ModelSpec,
    Sampled,
    SequenceId,
)
from llmos.drivers.decoding import Decoding, masks, rows_of, sample
from llmos.drivers.llama_batch import LlamaBatch, Placed
from llmos.drivers.llama_context import check_spec, open_context, planned_cells
from llmos.drivers.llama_kv import SharedKV, StreamKV
from llmos.drivers.llama_library import listen, load_library
from llmos.drivers.llama_model import LlamaModel
from llmos.drivers.llama_states import LlamaStates
from llmos.syscalls.content import Message
from llmos.syscalls.options import Constraint, Sampling
from llmos.syscalls.results import ToolSpec


class LlamaCpp:
    """An open GGUF model with its KV cache. Satisfies `LanguageModel`, whose docstrings hold here.

    Raises: DeviceError when the file is missing or damaged, or memory does not suffice.
    """

    def __init__(self, spec: ModelSpec) -> None:
        check_spec(spec)
        self._lib = load_library()
        self._context: Any = None
        self._buffers: Mapping[str, int] = {}
        self._decodings: dict[SequenceId, Decoding] = {}
        self._adapter: str | None = None  # the one that the context computes with
        self._model = LlamaModel(spec.path)
        try:
            info = self._model.describe(spec)
            cells = planned_cells(spec, info)
            layout = f"{'streams' if cells is None else 'unified'} {spec.kv_type}"
            self._info = replace(info, kv_cells=cells, kv_layout=layout)
            self._chat = self._model.chat_format()
            self._constraints = self._model.constraint_compiler()
            self._context, self._buffers = open_context(self._model.pointer, spec, self._info)
            self._states = LlamaStates(self._lib, self._context)
            self._kv = self._open_kv()
            self._batch = LlamaBatch(self._lib, spec.batch_tokens)
            self._fingerprint = kv_blob.fingerprint(spec.path, self._form(spec))
        except BaseException:
            self.close()
            raise

    def _open_kv(self) -> SharedKV:
        info = self._info
        if info.kv_cells is not None:
            return SharedKV(self._states, info.sequences)
        return StreamKV(self._states, info.sequences, can_trim=info.abilities.can_trim)

    def _form(self, spec: ModelSpec) -> str:
        """What a saved state depends on besides the model."""
        version: str = self._lib.llama_version().decode()
        layout = "one buffer" if self._info.kv_cells else f"{spec.sequences} streams"
        return f"llama_cpp {version}, {layout}, {spec.kv_type}, flash {spec.flash_attention}"

    @property
    def info(self) -> ModelInfo:
        return self._info

    # --- any thread ---

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        return self._model.tokenize(text, special=special)

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        return self._model.vocabulary.detokenize(tokens)

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[ToolSpec] = (), prefix: str = ""
    ) -> list[int]:
        return self._chat.render(messages, tools=tools, prefix=prefix)

    # --- engine thread: steps ---

    def add(
        self,
        sequence: SequenceId,
        *,
        sampling: Sampling,
        constraint: Constraint | None = None,
        prompt: Sequence[int] = (),
        generated: Sequence[int] = (),
        adapter: str | None = None,
    ) -> None:
        self._check_open()
        check_sequence(self._info, sequence)
        if adapter is not None:
            self._model.adapter(adapter)
        self._decodings[sequence] = Decoding(
            sampling=sampling,
            vocabulary=self._info.vocabulary,
            end_tokens=self._info.end_tokens,
            matcher=None if constraint is None else self._constraints.compile(constraint),
            prompt=prompt,
            generated=generated,
            adapter=adapter,
        )

    def step(self, feeds: Sequence[Feed]) -> list[Sampled]:
        self._check_open()
        check_feeds(self._info, feeds, length=self.length, decodings=self._decodings)
        if not feeds:
            return []
        allowed = masks(feeds, self._decodings)
        passes = self._kv.prepare(feeds)
        ordered = [feed for together in passes for feed in together]
        self._use_adapter(self._decodings[ordered[0].sequence].adapter)
        try:
            logits = self._logits(passes)
        except DeviceError:
            # What a pass had computed before one failed is in KV.
            self._kv.take_back(feed.sequence for feed in feeds)
            raise
        try:
            runs = sample(ordered, logits, allowed, self._decodings)
        except DeviceError as problem:
            # What computed these logits is not to be trusted.
            self._kv.take_back(feed.sequence for feed in ordered)
            raise DeviceError(str(problem), is_fatal=True) from problem
        for run in runs:
            self._kv.append(run.feed.sequence, run.held_tokens)
        self._kv.take_back(run.feed.sequence for run in runs if run.feed.draft)
        return [one for run in runs for one in run.sampled]

    def _logits(self, passes: Sequence[Sequence[Feed]]) -> NDArray[np.float32]:
        """Compute the passes of a step; their logits `(rows, vocabulary)` in the order of feeds.

        They hold until the next step. Raises: DeviceError.
        """
        if len(passes) == 1:  # nothing overwrites them before they are read
            self._decode(passes[0])
            return self._computed(passes[0])
        parts: list[NDArray[np.float32]] = []
        for feeds in passes:
            self._decode(feeds)
            parts.append(self._computed(feeds).copy())
        return np.concatenate(parts)

    def _computed(self, feeds: Sequence[Feed]) -> NDArray[np.float32]:
        """The last pass's logits `(rows, vocabulary)` in the order of feeds, until the next one."""
        rows = sum(map(rows_of, feeds))
        if not rows:
            return np.empty((0, self._info.vocabulary), np.float32)
        pointer = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (rows, self._info.vocabulary))

    def _decode(self, feeds: Sequence[Feed]) -> None:
        self._batch.fill(
            Placed(self._kv.number(feed.sequence), self.length(feed.sequence), feed)
            for feed in feeds
        )
        with listen() as heard:
            status: int = self._lib.llama_decode(self._context, self._batch.structure)
        if status == 0:
            return
        # 1: no room; -1: the batch was refused; below: the computation failed.
        if status == 1 and self._info.kv_cells is not None:
            raise DeviceError(
                f"the KV buffer of {self._info.kv_cells} tokens has no room for this step "
                "(status 1); trim sequences, or open the model with more kv_cells"
            )
        raise DeviceError(
            f"llama.cpp failed to decode (status {status}): {heard.reason}", is_fatal=status < -1
        )

    # --- engine thread: KV ---

    def length(self, sequence: SequenceId) -> int:
        check_sequence(self._info, sequence)
        return self._kv.lengths[sequence]

    def fork(self, source: SequenceId, target: SequenceId, tokens: int) -> None:
        self._check_open()
        check_empty(target, self.length(target))
        check_kept(self._info, source, tokens, self.length(source))
        if tokens:
            self._kv.fork(source, target, tokens)

    def trim(self, sequence: SequenceId, tokens: int) -> None:
        self._check_open()
        check_kept(self._info, sequence, tokens, self.length(sequence))
        if tokens < self.length(sequence):
            self._kv.trim(sequence, tokens)

    def save(self, sequence: SequenceId) -> bytes:
        self._check_open()
        return kv_blob.pack(self._fingerprint, self.length(sequence), self._kv.save(sequence))

    def restore(self, blob: bytes, sequence: SequenceId) -> None:
        self._check_open()
        check_empty(sequence, self.length(sequence))
        saved = kv_blob.unpack(blob, self._fingerprint)
        check_fits(self._info, saved.tokens)
        self._kv.restore(np.frombuffer(saved.payload, np.uint8), sequence, saved.tokens)

    # --- engine thread: adapters and the end ---

    def attach(self, name: str, path: Path) -> None:
        self._model.attach(name, path)

    def detach(self, name: str) -> None:
        self._model.adapter(name)
        users = [sequence for sequence, one in self._decodings.items() if one.adapter == name]
        for sequence in users:
            if self.length(sequence):
                raise DeviceError(
                    f"sequence {sequence} uses the adapter {name}; trim it to 0 first"
                )
        for sequence in users:
            del self._decodings[sequence]
        if self._adapter == name:
            self._use_adapter(None)
        self._model.detach(name)

    def _use_adapter(self, name: str | None) -> None:
        if name == self._adapter:
            return
        pointers = [] if name is None else [self._model.adapter(name)]
        count = len(pointers)
        with listen() as heard:
            status: int = self._lib.llama_set_adapters_lora(
                self._context,
                (self._lib.llama_adapter_lora_p_ctypes * count)(*pointers),
                count,
                (ctypes.c_float * count)(*[1.0] * count),
            )
        if status:
            raise DeviceError(f"llama.cpp cannot use the adapter {name}: {heard.reason}")
        self._adapter = name

    def allocations(self) -> list[Allocation]:
        if not self._context:
            return []
        return [
            *self._model.allocations(),
            Allocation("kv_cache", self._buffers.get("KV", 0)),
            Allocation("compute", self._buffers.get("compute", 0) + self._buffers.get("output", 0)),
            Allocation("kv_copies", self._states.buffer_bytes),
        ]

    def close(self) -> None:
        context, self._context = self._context, None
        if context:
            self._lib.llama_free(context)
        self._model.close()
        self._decodings.clear()

    def _check_open(self) -> None:
        """A pointer that was freed must not reach the library."""
        if not self._context:
            self._model.check_open()
