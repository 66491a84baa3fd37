"""What the kernel is told of the embedding model, the reranker and consolidation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmos.booting import settings_of
from llmos.config import Config
from llmos.drivers.contract import DeviceError
from llmos.kernel.settings import EmbeddingSetting
from llmos.memory.vector_model import VectorModel
from llmos.syscalls.errors import ConfigError, SyscallError


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A folder with all that is read of a model before it is opened."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": 24}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def embedding(folder: Path, **options: Any) -> EmbeddingSetting:
    config = Config().replace(embedding={"name": "own", "source": f"file:{folder}", **options})
    setting = settings_of(config).embedding
    assert setting is not None
    return setting


def test_the_width_and_the_identity_are_read_from_the_models_own_files(encoder: Path) -> None:
    setting = embedding(encoder)
    assert setting.width() == 24
    model = setting.identity()
    assert model.source == f"file:{encoder}"
    (encoder / "model.safetensors").write_bytes(b"others")
    assert setting.identity().identity != model.identity


def test_another_prefix_of_documents_is_another_model_and_one_of_queries_is_not(
    encoder: Path,
) -> None:
    plain = embedding(encoder).identity()
    assert embedding(encoder, document_prefix="text: ").identity().identity != plain.identity
    assert embedding(encoder, query_prefix="find: ").identity().identity == plain.identity


def test_a_model_that_is_not_here_has_no_identity_yet(tmp_path: Path) -> None:
    setting = embedding(tmp_path / "nowhere")
    with pytest.raises(SyscallError, match="own"):
        setting.width()
    assert setting.identity_text() is None


def test_the_model_of_a_store_is_not_opened_when_its_files_are_others_now(encoder: Path) -> None:
    setting = embedding(encoder)
    assert setting.reopen is not None
    was = VectorModel(identity="something else", source=f"file:{encoder}")
    with pytest.raises(DeviceError, match="another model now"):
        setting.reopen(was)


def test_consolidation_and_a_reranker_are_off_unless_configured() -> None:
    settings = settings_of(Config())
    assert (settings.consolidation, settings.reranker) == (None, None)
    settings = settings_of(
        Config().replace(
            consolidation={"enabled": True, "tokens": 70}, reranker={"source": "file:/nowhere"}
        )
    )
    assert settings.consolidation is not None
    assert settings.consolidation.tokens == 70
    assert settings.reranker is not None
    assert settings.reranker.name == "reranker"


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"consolidation": {"idle_s": 0}}, "consolidation.idle_s"),
        ({"reranker": {"device": "tpu"}}, "reranker.source"),
        ({"embedding": {"cache_byte": 1}}, "embedding.cache_byte"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(table: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Config().replace(**table)
    assert refusal.value.field == field
