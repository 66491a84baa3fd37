"""From a driver's name to an open model; the drivers' libraries load here and not before.

What the libraries' Python modules take is measured while they load, for the memory ledger: with
torch and transformers it is more than a small model's weights.
"""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import Literal, assert_never

from llmos.drivers.chat_model import ChatModel, RemoteSpec
from llmos.drivers.contract import (
    Allocation,
    CrossEncoder,
    EmbeddingModel,
    LanguageModel,
    ModelSpec,
)
from llmos.drivers.labeller import Labeller

DriverName = Literal["llama_cpp", "torch", "scripted"]

_TORCH = ("torch", "transformers.models.auto.modeling_auto")
_loaded: dict[str, int] = {}
_lock = threading.Lock()


def open_language_model(driver: DriverName, spec: ModelSpec) -> LanguageModel:
    """Open a model. Raises: DeviceError saying why it cannot be opened."""
    match driver:
        case "llama_cpp":
            _load("llama_cpp")
            from llmos.drivers.llama_cpp import LlamaCpp

            return LlamaCpp(spec)
        case "torch":
            _load(*_TORCH, "transformers.models.llama.modeling_llama")
            from llmos.drivers.torch_lm import TorchLM

            return TorchLM(spec)
        case "scripted":
            from llmos.drivers.scripted import Scripted

            return Scripted(spec)
        case _:
            assert_never(driver)


def open_embedding_model(spec: ModelSpec) -> EmbeddingModel:
    """Open an embedding model. Raises: DeviceError saying why it cannot be opened."""
    _load(*_TORCH, "transformers.models.bert.modeling_bert")
    from llmos.drivers.embedding import TorchEmbedding

    return TorchEmbedding(spec)


def open_cross_encoder(spec: ModelSpec) -> CrossEncoder:
    """Open a cross-encoder. Raises: DeviceError saying why it cannot be opened."""
    _load(*_TORCH, "transformers.models.bert.modeling_bert")
    from llmos.drivers.cross_encoder import TorchCrossEncoder

    return TorchCrossEncoder(spec)


def open_task_model(folder: Path, base: Path | None, *, device: str) -> Labeller:
    """Open a trained task model; `base` is the folder of its encoder, where it has none of its own.

    Raises: DeviceError saying why it cannot be opened.
    """
    _load(*_TORCH, "transformers.models.bert.modeling_bert")
    from llmos.drivers.task_model import TaskModel

    return TaskModel(folder, base, device)


def open_remote_model(spec: RemoteSpec) -> ChatModel:
    """A model behind a server; the server is looked for when the model's own `open` is called."""
    from llmos.drivers.remote import RemoteModel

    return RemoteModel(spec)


def module_allocations() -> list[Allocation]:
    """What the modules of the libraries loaded so far took when they were imported."""
    return [Allocation(f"modules of {name}", size) for name, size in _loaded.items()]


def _load(*modules: str) -> None:
    """Import modules, and note what they took; what other threads take meanwhile is counted too."""
    with _lock:
        for module in modules:
            before = _anonymous_bytes()
            importlib.import_module(module)
            library = module.partition(".")[0]
            taken = max(0, _anonymous_bytes() - before)
            _loaded[library] = _loaded.get(library, 0) + taken


def _anonymous_bytes() -> int:
    """Resident memory that no file backs."""
    import psutil

    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)
