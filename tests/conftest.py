"""Fixtures that need the real models: taken from the model store, pulled on first use."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmos.memory.model_store import ModelStore


@pytest.fixture(scope="session")
def model_store() -> ModelStore:
    """The user's own model store."""
    return ModelStore()


@pytest.fixture(scope="session")
def smollm2_path(model_store: ModelStore) -> Path:
    """The GGUF file of the default language model."""
    model_store.pull("smollm2")
    return model_store.path("smollm2")


@pytest.fixture(scope="session")
def minilm_path(model_store: ModelStore) -> Path:
    """The folder of the default embedding model."""
    model_store.pull("minilm")
    return model_store.path("minilm")
