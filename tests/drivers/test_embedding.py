"""The embedding driver: what its vectors mean, that batches change nothing, and its failures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmos.drivers.contract import DeviceError, ModelSpec
from llmos.drivers.embedding import TorchEmbedding

pytestmark = pytest.mark.model
TEXTS = (
    "A cat sleeps on the sofa.",
    "The kitten is taking a nap on the couch.",
    "Quarterly revenue rose by four per cent.",
    "x",
    "many words " * 200,
)


@pytest.fixture(scope="module")
def model(minilm_path: Path) -> Iterator[TorchEmbedding]:
    opened = TorchEmbedding(ModelSpec("minilm", minilm_path))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def vectors(model: TorchEmbedding) -> np.ndarray[Any, Any]:
    return np.array(model.embed(TEXTS))


def test_the_info_says_what_the_model_is(model: TorchEmbedding) -> None:
    info = model.info
    assert (info.dimensions, info.max_tokens) == (384, 256)
    assert info.parameters > 20_000_000
    (weights,) = model.allocations()
    assert weights.bytes == 4 * info.parameters


def test_vectors_have_unit_length(vectors: np.ndarray[Any, Any]) -> None:
    assert vectors.shape == (len(TEXTS), 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)


def test_what_means_the_same_is_nearer_than_what_does_not(vectors: np.ndarray[Any, Any]) -> None:
    cat, kitten, revenue = vectors[:3]
    assert cat @ kitten > 0.5
    assert cat @ revenue < 0.2


def test_a_text_in_a_batch_has_the_vector_it_has_alone(
    model: TorchEmbedding, vectors: np.ndarray[Any, Any]
) -> None:
    for text, vector in zip(TEXTS, vectors, strict=True):
        (alone,) = model.embed([text])
        assert np.array(alone) == pytest.approx(vector, abs=1e-5)


def test_many_texts_keep_their_order(model: TorchEmbedding) -> None:
    texts = [f"number {n} " + "and so on " * (n % 7) for n in range(60)]
    many = np.array(model.embed(texts))
    some = [3, 41, 59]
    assert many[some] == pytest.approx(np.array(model.embed([texts[n] for n in some])), abs=1e-5)


def test_vectors_are_those_that_the_plain_model_gives(
    minilm_path: Path, vectors: np.ndarray[Any, Any]
) -> None:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_path, local_files_only=True)
    plain = AutoModel.from_pretrained(minilm_path, local_files_only=True)
    for text, vector in zip(TEXTS, vectors, strict=True):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.inference_mode():
            mean = plain(**inputs).last_hidden_state[0].mean(dim=0)
        assert (mean / mean.norm()).numpy() == pytest.approx(vector, abs=1e-5)


def test_a_text_over_the_window_is_cut_to_it(model: TorchEmbedding) -> None:
    long = "word " * 1000
    assert model.count(long) == 1002
    assert model.count("word") == 3  # with the tokens that begin and end every text
    cut, whole = model.embed([long, "word " * 254])
    assert cut == pytest.approx(whole, abs=1e-5)


def test_a_lone_surrogate_is_read_as_a_question_mark(model: TorchEmbedding) -> None:
    broken, mended = model.embed(["a\ud800b", "a?b"])
    assert broken == pytest.approx(mended, abs=1e-5)


def test_no_texts_give_no_vectors(model: TorchEmbedding) -> None:
    assert model.embed([]) == []


@pytest.mark.parametrize("empty", ["", " \n\t"])
def test_an_empty_text_is_refused_by_its_place(model: TorchEmbedding, empty: str) -> None:
    with pytest.raises(DeviceError, match="text 1 of 2 is empty") as caught:
        model.embed(["full", empty])
    assert not caught.value.is_fatal


def test_a_failure_while_embedding_is_a_device_error(
    model: TorchEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = RuntimeError("broken")

    def fail(*_arguments: Any, **_options: Any) -> None:
        raise failure

    with monkeypatch.context() as patch:
        inner: Any = model._model
        patch.setattr(inner.encoder, "forward", fail)
        with pytest.raises(DeviceError, match="broken") as caught:
            model.embed(["text"])
    assert caught.value.__cause__ is failure
    assert model.embed(["text"])


def test_a_damaged_folder_is_refused(minilm_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot load"):
        TorchEmbedding(ModelSpec("nowhere", tmp_path / "nowhere"))
    for name, file, content in (
        ("cut", "model.safetensors", b"\0" * 30),
        ("settings", "config.json", b"{"),
        ("window", "sentence_bert_config.json", b"{"),
        ("pooling", "1_Pooling/config.json", b'{"pooling_mode_new": true}'),
    ):
        folder = tmp_path / name
        shutil.copytree(minilm_path, folder)
        (folder / file).write_bytes(content)
        with pytest.raises(DeviceError):
            TorchEmbedding(ModelSpec(name, folder))


def test_a_closed_model_refuses_work(minilm_path: Path) -> None:
    closed = TorchEmbedding(ModelSpec("minilm", minilm_path))
    closed.close()
    assert closed.allocations() == []
    with pytest.raises(DeviceError, match="closed") as caught:
        closed.embed(["text"])
    assert caught.value.is_fatal
