"""What is read of an embedding model's own files, and that vectors are made as they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmos.drivers.contract import DeviceError, ModelSpec
from llmos.drivers.embedding import TorchEmbedding
from llmos.drivers.sentence_folder import dimensions, identity, read_sentence_folder

TEXTS = ("alpha beta gamma", "beta", "gamma alpha alpha beta beta gamma alpha")
WIDTH = 16  # of the tiny model


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def make(tiny_bert: Path, tmp_path: Path) -> Callable[..., Path]:
    """`make(modules, poolings)`: the tiny model with these settings."""

    def folder(*kinds: str, pooling: dict[str, Any] | None = None) -> Path:
        target = tmp_path / "model"
        shutil.copytree(tiny_bert, target)
        modules = [
            {"idx": n, "path": "" if n == 0 else f"{n}_{kind}", "type": f"models.{kind}"}
            for n, kind in enumerate(("Transformer", *kinds))
        ]
        write(target / "modules.json", modules)
        if pooling is not None:
            write(target / "1_Pooling" / "config.json", pooling)
        return target

    return folder


def opened(folder: Path) -> TorchEmbedding:
    return TorchEmbedding(ModelSpec("tiny", folder, threads=1))


def states(folder: Path, text: str) -> torch.Tensor:
    """The encoder's token states by transformers alone, (tokens, width)."""
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        return AutoModel.from_pretrained(folder)(**inputs).last_hidden_state[0]


POOLED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pooling_mode_cls_token": lambda s: s[0],
    "pooling_mode_max_tokens": lambda s: s.amax(dim=0),
    "pooling_mode_mean_tokens": lambda s: s.mean(dim=0),
    "pooling_mode_mean_sqrt_len_tokens": lambda s: s.sum(dim=0) / len(s) ** 0.5,
    "pooling_mode_lasttoken": lambda s: s[-1],
    "pooling_mode_weightedmean_tokens": lambda s: (
        (s * torch.arange(1, len(s) + 1)[:, None]).sum(dim=0) / sum(range(1, len(s) + 1))
    ),
}


@pytest.mark.parametrize("pooling", list(POOLED))
def test_each_pooling_is_what_its_name_says(make: Callable[..., Path], pooling: str) -> None:
    folder = make("Pooling", "Normalize", pooling={pooling: True})
    model = opened(folder)
    vectors = np.array(model.embed(TEXTS))
    for text, vector in zip(TEXTS, vectors, strict=True):
        wanted = POOLED[pooling](states(folder, text)).numpy()
        assert vector == pytest.approx(wanted / np.linalg.norm(wanted), abs=1e-5)


def test_several_poolings_stand_side_by_side(make: Callable[..., Path]) -> None:
    both = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    folder = make("Pooling", pooling=both)
    assert dimensions(folder) == 2 * WIDTH
    model = opened(folder)
    assert model.info.dimensions == 2 * WIDTH
    found = states(folder, TEXTS[0])
    wanted = torch.cat([found[0], found.mean(dim=0)]).numpy()
    assert np.array(model.embed(TEXTS)[0]) == pytest.approx(
        wanted / np.linalg.norm(wanted), abs=1e-5
    )


def test_a_dense_layer_comes_after_the_pooling(make: Callable[..., Path]) -> None:
    from safetensors.torch import save_file

    folder = make("Pooling", "Dense", pooling={"pooling_mode_mean_tokens": True})
    weight, bias = torch.randn(5, WIDTH), torch.randn(5)
    write(
        folder / "2_Dense" / "config.json",
        {"out_features": 5, "activation_function": "torch.nn.modules.activation.Tanh"},
    )
    save_file(
        {"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense" / "model.safetensors"
    )
    model = opened(folder)
    assert model.info.dimensions == dimensions(folder) == 5
    wanted = torch.tanh(weight @ states(folder, TEXTS[0]).mean(dim=0) + bias).numpy()
    assert np.array(model.embed(TEXTS[:1])[0]) == pytest.approx(
        wanted / np.linalg.norm(wanted), abs=1e-5
    )


def test_a_plain_encoder_is_averaged(tiny_bert: Path) -> None:
    model = read_sentence_folder(tiny_bert)
    assert model.poolings == ("mean",)
    assert dimensions(tiny_bert) == WIDTH
    assert opened(tiny_bert).info.max_tokens == 32


def test_prefixes_and_windows_are_read(make: Callable[..., Path]) -> None:
    folder = make("Pooling", pooling={"pooling_mode_cls_token": True})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True})
    write(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "find: ", "passage": "text: "}, "similarity_fn_name": "cosine"},
    )
    model = opened(folder)
    assert (model.info.query_prefix, model.info.document_prefix) == ("find: ", "text: ")
    assert model.info.max_tokens == 20
    assert model.embed(["ALPHA"]) == model.embed(["alpha"])
    by_hand = ModelSpec("tiny", folder, threads=1, query_prefix="", document_prefix="doc: ")
    info = TorchEmbedding(by_hand).info
    assert (info.query_prefix, info.document_prefix) == ("", "doc: ")


def test_the_identity_is_of_the_content(make: Callable[..., Path], tiny_bert: Path) -> None:
    folder = make("Pooling", pooling={"pooling_mode_cls_token": True})
    first = identity(folder)
    (folder / "README.md").write_text("words change nothing")
    assert identity(folder) == first != identity(tiny_bert)
    write(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    assert identity(folder) != first


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("modules.json", [{"path": "", "type": "models.CNN"}], "module CNN"),
        ("1_Pooling/config.json", {"pooling_mode_new": True}, "pooling_mode_new"),
        ("1_Pooling/config.json", {"include_prompt": False}, "prompt's tokens"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "dot"}, "dot"),
        ("1_Pooling/config.json", [], "no JSON object"),
        ("config.json", {}, "no hidden_size"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    make: Callable[..., Path], file: str, content: Any, what: str
) -> None:
    folder = make("Pooling", pooling={"pooling_mode_cls_token": True})
    write(folder / file, content)
    with pytest.raises(DeviceError, match=what):
        dimensions(folder)
