"""A GGUF model as llama.cpp holds it: weights, tokenizer, metadata, adapters.

Owns the model's pointer and what was made from the file when it was opened. Refuses to know
sequences and KV: a context over the model does (`llama_cpp.py`). The file's header and sizes are
checked before the library reads it, because what it finds out too late ends the process.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from llmos.drivers.chat import ChatFormat
from llmos.drivers.constraint import ConstraintCompiler
from llmos.drivers.contract import (
    Abilities,
    Allocation,
    DeviceError,
    KVType,
    ModelInfo,
    ModelSpec,
)
from llmos.drivers.gguf_header import DamagedFile, read_gguf_header
from llmos.drivers.llama_library import listen, load_library
from llmos.drivers.llama_vocabulary import LlamaVocabulary
from llmos.drivers.lora_gguf import gguf_adapter

# Bytes of KV values: half precision, or blocks of 32 bytes with a scale of two.
KV_VALUE_BYTES: Mapping[KVType, Fraction] = {"f16": Fraction(2), "q8_0": Fraction(34, 32)}
_META_BYTES = 256


class _Adapter(NamedTuple):
    pointer: Any
    bytes: int


class LlamaModel:
    """One open GGUF file. `pointer` is llama.cpp's; None once closed.

    Raises: DeviceError when the file is missing, damaged or of a kind that llama.cpp does not know.
    """

    def __init__(self, path: Path) -> None:
        _check_file(path)
        self.path = path
        self.pointer: Any = None
        self._lib = load_library()
        # Tokenizing on another thread must not meet a model that is being freed.
        self._tokenizing = threading.Lock()
        self._adapters: dict[str, _Adapter] = {}
        parameters = self._lib.llama_model_default_params()
        parameters.n_gpu_layers = 0
        with listen() as heard:
            self.pointer = self._lib.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self.pointer:
            raise DeviceError(f"llama.cpp cannot load {path.name}: {heard.reason}")
        self._weights_bytes = heard.buffers.get("model", 0)
        self.vocabulary = LlamaVocabulary(self._lib, self.pointer)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text; any thread. Raises: DeviceError once closed."""
        with self._tokenizing:
            self.check_open()
            return self.vocabulary.tokenize(text, special=special)

    def chat_format(self) -> ChatFormat:
        """The conversation format that the file carries. Raises: DeviceError."""
        template: bytes | None = self._lib.llama_model_chat_template(self.pointer, None)
        return ChatFormat(
            None if template is None else template.decode("utf-8", errors="replace"),
            tokenize=self.tokenize,
            special=self.vocabulary.special,
            bos=self.vocabulary.bos,
            eos=self.vocabulary.eos,
            begin=self.vocabulary.begin,
        )

    def constraint_compiler(self) -> ConstraintCompiler:
        """A compiler of constraints over this vocabulary."""
        return ConstraintCompiler(
            self.vocabulary.pieces,
            special=self.vocabulary.special.values(),
            end=self.vocabulary.end_tokens,
            tokenize=self.tokenize,
        )

    def describe(self, spec: ModelSpec) -> ModelInfo:
        """The model under the sizes of `spec`, the window cut to what it was trained for."""
        lib, model = self._lib, self.pointer
        can_trim = not (lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))
        return ModelInfo(
            name=spec.name,
            driver="llama_cpp",
            device=spec.device,
            architecture=self._meta("general.architecture") or "unknown",
            parameters=lib.llama_model_n_params(model),
            vocabulary=self.vocabulary.size,
            context_tokens=min(spec.context_tokens, lib.llama_model_n_ctx_train(model)),
            sequences=spec.sequences,
            batch_tokens=spec.batch_tokens,
            kv_bytes_per_token=self._kv_bytes_per_token(spec.kv_type),
            end_tokens=self.vocabulary.end_tokens,
            weights_format=(lib.llama_ftype_name(lib.llama_model_ftype(model)) or b"?").decode(),
            abilities=Abilities(can_trim=can_trim, can_verify=can_trim),
        )

    def attach(self, name: str, path: Path) -> None:
        """Load a LoRA adapter from a GGUF file, or from peft's folder, which is converted.

        Raises: DeviceError.
        """
        self.check_open()
        if name in self._adapters:
            raise DeviceError(f"an adapter {name} is attached already")
        if path.is_dir():
            path = gguf_adapter(path, self.path)
        _check_file(path)
        with listen() as heard:
            pointer = self._lib.llama_adapter_lora_init(self.pointer, os.fsencode(path))
        if not pointer:
            raise DeviceError(f"llama.cpp cannot attach {path.name}: {heard.reason}")
        self._adapters[name] = _Adapter(pointer, path.stat().st_size)

    def detach(self, name: str) -> None:
        """Free an adapter that no context uses. Raises: DeviceError when it is not attached."""
        self._lib.llama_adapter_lora_free(self.adapter(name))
        del self._adapters[name]

    def adapter(self, name: str) -> Any:
        """An adapter's pointer. Raises: DeviceError when it is not attached."""
        if name not in self._adapters:
            raise DeviceError(f"no adapter {name} is attached to {self.path.name}")
        return self._adapters[name].pointer

    def allocations(self) -> list[Allocation]:
        adapters = [Allocation(f"adapter {name}", a.bytes) for name, a in self._adapters.items()]
        return [Allocation("weights", self._weights_bytes), *adapters] if self.pointer else []

    def check_open(self) -> None:
        """Raises: DeviceError once the model is closed."""
        if not self.pointer:
            raise DeviceError(f"{self.path.name} is closed", is_fatal=True)

    def close(self) -> None:
        """Free the model and its adapters; contexts over it must be freed before."""
        with self._tokenizing:
            pointer, self.pointer = self.pointer, None
            if pointer:
                self._lib.llama_model_free(pointer)
        self._adapters.clear()

    def _kv_bytes_per_token(self, kind: KVType) -> int:
        """Keys and values of one token in all layers, taking the first layer's heads for all.

        0 for a model without attention, whose state does not grow.
        """
        lib, model = self._lib, self.pointer
        heads: int = lib.llama_model_n_head_kv(model)
        if not heads:
            return 0
        architecture = self._meta("general.architecture")
        head = lib.llama_model_n_embd(model) // lib.llama_model_n_head(model)
        lengths = sum(
            int(self._meta(f"{architecture}.attention.{part}_length") or head)
            for part in ("key", "value")
        )
        values: int = lib.llama_model_n_layer(model) * heads * lengths
        return int(values * KV_VALUE_BYTES[kind])

    def _meta(self, key: str) -> str | None:
        """A metadata value as text."""
        buffer = ctypes.create_string_buffer(_META_BYTES)
        length: int = self._lib.llama_model_meta_val_str(
            self.pointer, key.encode(), buffer, _META_BYTES
        )
        return None if length < 0 else buffer.value.decode("utf-8", errors="replace")


def _check_file(path: Path) -> None:
    """Raises: DeviceError unless this is a GGUF file with all its tensors."""
    try:
        read_gguf_header(path)
    except DamagedFile as problem:
        raise DeviceError(str(problem)) from problem
    except OSError as problem:
        raise DeviceError(f"cannot read {path}: {problem.strerror}") from problem
