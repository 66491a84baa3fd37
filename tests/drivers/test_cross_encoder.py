"""The cross-encoder driver: its scores are the classifier's, whatever the batches."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos.drivers.contract import DeviceError, ModelSpec
from llmos.drivers.cross_encoder import TorchCrossEncoder

QUERY = "alpha gamma"
TEXTS = ("beta", "alpha alpha beta", "gamma " * 50, "gamma beta alpha", "beta " * 9)


def classifier(tiny_bert: Path, folder: Path, *, labels: int = 1) -> Path:
    from transformers import BertForSequenceClassification

    shutil.copytree(tiny_bert, folder)
    torch.manual_seed(1)
    model: Any = BertForSequenceClassification.from_pretrained(tiny_bert, num_labels=labels)
    model.classifier.weight.data.mul_(30)  # scores that differ
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tiny_bert, tmp_path_factory.mktemp("cross") / "model")


def test_scores_are_the_classifiers_and_keep_their_order(folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = TorchCrossEncoder(ModelSpec("tiny", folder, threads=1))
    assert model.info.max_tokens == 32
    scores = model.score(QUERY, TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    for text, score in zip(TEXTS, scores, strict=True):
        inputs = tokenizer(QUERY, text, return_tensors="pt", truncation=True, max_length=32)
        with torch.inference_mode():
            wanted = torch.sigmoid(plain(**inputs).logits[0, 0]).item()
        assert score == pytest.approx(wanted, abs=1e-5)
    assert len(set(scores)) == len(scores)


def test_no_texts_have_no_scores(folder: Path) -> None:
    assert TorchCrossEncoder(ModelSpec("tiny", folder, threads=1)).score(QUERY, []) == []


def test_a_closed_model_refuses_work(folder: Path) -> None:
    model = TorchCrossEncoder(ModelSpec("tiny", folder, threads=1))
    assert model.allocations()
    model.close()
    assert model.allocations() == []
    with pytest.raises(DeviceError, match="closed"):
        model.score(QUERY, TEXTS)


def test_what_is_no_cross_encoder_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot load"):
        TorchCrossEncoder(ModelSpec("nowhere", tmp_path / "nowhere", threads=1))
    three = classifier(tiny_bert, tmp_path / "three", labels=3)
    with pytest.raises(DeviceError, match="3 labels"):
        TorchCrossEncoder(ModelSpec("three", three, threads=1))
