"""llama.cpp as a device: one GGUF model, many sequences in one context, on the CPU.

Owns the context and its KV cache, through the low-level API of llama-cpp-python. Each sequence has
a stream of KV of its own (`kv_unified` off), so that attention runs over its own tokens only. Mixed
prefill and decode is one `llama_batch`.

Two properties of llama.cpp shape this module. It computes several sequences in one pass only when
their streams are neighbours, in ascending order; so feeds are sorted, and sequences that run move
together (`llama_streams.py`). And `llama_memory_seq_cp` between streams copies a whole stream, and
only at the next decode, from a source that may have changed by then; so `fork` goes through the
sequence's state instead, which copies the tokens in use and at once.

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
import os
from collections.abc import Sequence
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
from llmos.drivers.decoding import Decoding, masks
from llmos.drivers.llama_batch import LlamaBatch, Placed
from llmos.drivers.llama_library import listen, load_library
from llmos.drivers.llama_model import LlamaModel
from llmos.drivers.llama_streams import Streams
from llmos.syscalls.content import Message
from llmos.syscalls.options import Constraint, Sampling
from llmos.syscalls.results import ToolSpec

State = NDArray[np.uint8]

_FREE_SHARE = 0.9  # most of the free memory that the KV cache may take


class LlamaCpp:
    """An open GGUF model with its KV cache. Satisfies `LanguageModel`, whose docstrings hold here.

    Raises: DeviceError when the file is missing or damaged, or memory does not suffice.
    """

    def __init__(self, spec: ModelSpec) -> None:
        _check_spec(spec)
        self._lib = load_library()
        self._context: Any = None
        self._lengths = [0] * spec.sequences
        self._streams = Streams(spec.sequences)
        self._decodings: dict[SequenceId, Decoding] = {}
        self._adapter: str | None = None  # the one that the context computes with
        self._model = LlamaModel(spec.path)
        try:
            self._info = self._model.describe(spec)
            self._chat = self._model.chat_format()
            self._constraints = self._model.constraint_compiler()
            self._open_context(spec)
            self._batch = LlamaBatch(self._lib, spec.batch_tokens)
            layout = f"llama_cpp {self._lib.llama_version().decode()}, {spec.sequences} streams"
            self._fingerprint = kv_blob.fingerprint(spec.path, layout)
        except BaseException:
            self.close()
            raise

    def _open_context(self, spec: ModelSpec) -> None:
        _check_memory(self._info)
        parameters = self._lib.llama_context_default_params()
        parameters.n_ctx = self._info.context_tokens * spec.sequences
        parameters.n_seq_max = spec.sequences
        # One token of each sequence asks for logits. Room for every token would cost a hundred
        # megabytes, and room for less than one a sequence ends the process.
        parameters.n_outputs_max = spec.sequences
        parameters.n_batch = parameters.n_ubatch = max(spec.batch_tokens, spec.sequences)
        parameters.kv_unified = False
        threads = spec.threads or len(os.sched_getaffinity(0))
        parameters.n_threads = parameters.n_threads_batch = threads
        with listen() as heard:
            self._context = self._lib.llama_init_from_model(self._model.pointer, parameters)
        if not self._context:
            raise DeviceError(f"llama.cpp cannot make a context: {heard.reason}")
        self._memory = self._lib.llama_get_memory(self._context)
        self._buffers = heard.buffers

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
        for one, other in self._streams.due([feed.sequence for feed in feeds], self._lengths):
            self._swap(one, other)
        ordered = sorted(feeds, key=lambda feed: self._streams.of(feed.sequence))
        self._use_adapter(self._decodings[ordered[0].sequence].adapter)
        self._batch.fill(
            Placed(self._streams.of(feed.sequence), self._lengths[feed.sequence], feed)
            for feed in ordered
        )
        self._decode(ordered)
        for feed in ordered:
            self._lengths[feed.sequence] += len(feed.tokens)
        sampling = [feed.sequence for feed in ordered if feed.sample]
        try:
            return [
                self._decodings[sequence].choose(sequence, row, allowed[sequence])
                for sequence, row in zip(sampling, self._logits(len(sampling)), strict=True)
            ]
        except DeviceError as problem:
            # The tokens are in the KV already, and what computed these logits is not to be trusted.
            raise DeviceError(str(problem), is_fatal=True) from problem

    def _decode(self, feeds: Sequence[Feed]) -> None:
        with listen() as heard:
            status: int = self._lib.llama_decode(self._context, self._batch.structure)
        if status == 0:
            return
        for feed in feeds:
            # A failure in a later pass leaves the tokens of the passes before it.
            self._remove(feed.sequence, self.length(feed.sequence))
        # 1: no room; -1: the batch was refused; below: the computation failed.
        raise DeviceError(
            f"llama.cpp failed to decode (status {status}): {heard.reason}", is_fatal=status < -1
        )

    def _logits(self, rows: int) -> NDArray[np.float32]:
        """The last step's logits `(rows, vocabulary)` in its batch's order, until the next step."""
        if not rows:
            return np.empty((0, self._info.vocabulary), np.float32)
        pointer = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (rows, self._info.vocabulary))

    # --- engine thread: KV ---

    def length(self, sequence: SequenceId) -> int:
        check_sequence(self._info, sequence)
        return self._lengths[sequence]

    def fork(self, source: SequenceId, target: SequenceId, tokens: int) -> None:
        check_empty(target, self.length(target))
        check_kept(self._info, source, tokens, self.length(source))
        if tokens:
            self._write_state(self._read_state(source), target, self.length(source))
            self.trim(target, tokens)

    def trim(self, sequence: SequenceId, tokens: int) -> None:
        self._check_open()
        check_kept(self._info, sequence, tokens, self.length(sequence))
        if tokens < self._lengths[sequence]:
            self._remove(sequence, tokens)
            self._lengths[sequence] = tokens

    def save(self, sequence: SequenceId) -> bytes:
        tokens = self.length(sequence)
        return kv_blob.pack(self._fingerprint, tokens, self._read_state(sequence))

    def restore(self, blob: bytes, sequence: SequenceId) -> None:
        check_empty(sequence, self.length(sequence))
        saved = kv_blob.unpack(blob, self._fingerprint)
        check_fits(self._info, saved.tokens)
        self._write_state(np.frombuffer(saved.payload, np.uint8), sequence, saved.tokens)

    def _swap(self, one: SequenceId, other: SequenceId) -> None:
        """Let two sequences change streams."""
        held = [sequence for sequence in (one, other) if self._lengths[sequence]]
        states = [self._read_state(sequence) for sequence in held]
        for sequence in held:
            self._remove(sequence, 0)
        self._streams.swap(one, other)
        try:
            for sequence, state in zip(held, states, strict=True):
                self._write_state(state, sequence, self._lengths[sequence])
        except DeviceError as problem:
            raise DeviceError(f"a sequence was lost: {problem}", is_fatal=True) from problem

    def _read_state(self, sequence: SequenceId) -> State:
        self._check_open()
        with listen() as heard:
            stream = self._streams.of(sequence)
            size: int = self._lib.llama_state_seq_get_size(self._context, stream)
            state = np.empty(size, np.uint8)
            written: int = self._lib.llama_state_seq_get_data(
                self._context, _bytes_at(state), size, stream
            )
        if not written:
            raise DeviceError(f"llama.cpp cannot save sequence {sequence}: {heard.reason}")
        return state

    def _write_state(self, state: State, sequence: SequenceId, tokens: int) -> None:
        """Fill an empty sequence from a state that holds `tokens` tokens."""
        self._check_open()
        stream = self._streams.of(sequence)
        with listen() as heard:
            read: int = self._lib.llama_state_seq_set_data(
                self._context, _bytes_at(state), len(state), stream
            )
        held: int = self._lib.llama_memory_seq_pos_max(self._memory, stream) + 1
        if not read or held != tokens:
            self._remove(sequence, 0)
            raise DeviceError(
                f"the saved sequence cannot be restored: {held} of {tokens} tokens; {heard.reason}"
            )
        self._lengths[sequence] = tokens

    def _remove(self, sequence: SequenceId, start: int) -> None:
        """Drop a sequence's KV from position `start` on."""
        stream = self._streams.of(sequence)
        if not self._lib.llama_memory_seq_rm(self._memory, stream, start, -1):
            raise DeviceError(
                f"llama.cpp cannot drop sequence {sequence} from token {start} on", is_fatal=True
            )

    # --- engine thread: adapters and the end ---

    def attach(self, name: str, path: Path) -> None:
        self._model.attach(name, path)

    def detach(self, name: str) -> None:
        self._model.adapter(name)
        users = [sequence for sequence, one in self._decodings.items() if one.adapter == name]
        for sequence in users:
            if self._lengths[sequence]:
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


def _check_spec(spec: ModelSpec) -> None:
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


def _check_memory(info: ModelInfo) -> None:
    """Raises: DeviceError when the KV cache would not fit; the system would kill us instead."""
    import psutil

    needed = info.kv_bytes_per_token * info.context_tokens * info.sequences
    free = int(psutil.virtual_memory().available * _FREE_SHARE)
    if needed > free:
        raise DeviceError(
            f"{info.sequences} sequences of {info.context_tokens} tokens need {needed / 2**30:.1f} "
            f"GiB of KV cache and {free / 2**30:.1f} GiB are free; ask for fewer or shorter ones"
        )


def _bytes_at(array: State) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
