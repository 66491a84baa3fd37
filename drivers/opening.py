"""From a driver's name to an open model; the drivers' libraries load here and not before."""

from __future__ import annotations

from typing import Literal, assert_never

from llmos.drivers.contract import EmbeddingModel, LanguageModel, ModelSpec

DriverName = Literal["llama_cpp", "torch", "scripted"]


def open_language_model(driver: DriverName, spec: ModelSpec) -> LanguageModel:
    """Open a model. Raises: DeviceError saying why it cannot be opened."""
    match driver:
        case "llama_cpp":
            from llmos.drivers.llama_cpp import LlamaCpp

            return LlamaCpp(spec)
        case "torch":
            from llmos.drivers.torch_lm import TorchLM

            return TorchLM(spec)
        case "scripted":
            from llmos.drivers.scripted import Scripted

            return Scripted(spec)
        case _:
            assert_never(driver)


def open_embedding_model(spec: ModelSpec) -> EmbeddingModel:
    """Open an embedding model. Raises: DeviceError saying why it cannot be opened."""
    from llmos.drivers.embedding import TorchEmbedding

    return TorchEmbedding(spec)
