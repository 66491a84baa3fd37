from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.training.decoder import open_decoder
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.methods import check_method, parameter_groups
from llmos.syscalls.errors import SyscallError


def trainable(path: Path, **settings: Any) -> dict[str, Any]:
    model = open_decoder(TrainJob(base=str(path), output="", **settings), "cpu").model
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_frozen_layers_and_embeddings_are_not_trained(tiny_model_path: Path) -> None:
    everything = trainable(tiny_model_path, method="full")
    upper = trainable(tiny_model_path, method="full", freeze=("embeddings", "layers.0"))
    assert set(upper) == {
        name for name in everything if ".layers.0." not in name and "embed" not in name
    }
    adapters = trainable(tiny_model_path, freeze=("layers.0-0",))
    assert adapters
    assert all(".layers.0." not in name and "lora" in name for name in adapters)
    named = trainable(tiny_model_path, method="full", freeze=("mlp",))
    assert named and not any("mlp" in name for name in named)


@pytest.mark.parametrize("freeze", [("layers.7",), ("nothing",), ("layers.0-1", "lora")])
def test_a_name_that_fits_nothing_and_a_model_with_nothing_left_are_refused(
    tiny_model_path: Path, freeze: tuple[str, ...]
) -> None:
    with pytest.raises(SyscallError, match="freeze") as refused:
        trainable(tiny_model_path, freeze=freeze)
    assert refused.value.fields == {"field": "freeze"}


def test_rates_fall_from_layer_to_layer_and_norms_do_not_decay(tiny_model_path: Path) -> None:
    named = trainable(tiny_model_path, method="full")
    groups = parameter_groups(named.items(), weight_decay=0.1, layer_decay=0.5)
    found = {
        name: (group["scale"], group["weight_decay"])
        for group in groups
        for name, p in named.items()
        if any(p is one for one in group["params"])
    }
    assert found["model.norm.weight"] == (1.0, 0.0)
    assert found["model.layers.1.mlp.up_proj.weight"] == (0.5, 0.1)
    assert found["model.layers.0.mlp.up_proj.weight"] == (0.25, 0.1)
    assert found["model.layers.0.input_layernorm.weight"] == (0.25, 0.0)
    assert found["model.embed_tokens.weight"] == (0.125, 0.1)
    assert len(found) == len(named)


def test_what_this_machine_cannot_train_is_refused_with_the_reason() -> None:
    for method, reason in (("qlora", "CUDA"), ("prompt", "trains nothing")):
        with pytest.raises(SyscallError, match=reason) as refused:
            check_method(method, device="cpu")
        assert refused.value.code == "not_available"
    check_method("lora", device="cpu")
