"""Adapters converted for llama.cpp: what the file holds, and that both drivers agree on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from llmos.drivers.contract import DeviceError, Feed, LanguageModel, ModelSpec
from llmos.drivers.llama_cpp import LlamaCpp
from llmos.drivers.llama_requantise import requantised
from llmos.drivers.lora_gguf import gguf_adapter
from llmos.drivers.torch_lm import TorchLM
from llmos.drivers.torch_weights import checkpoint
from llmos.syscalls.options import Sampling

pytestmark = pytest.mark.model
MakeLora = Callable[..., Path]
TARGETS = [
    f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")
]  # every linear layer of a block
WINDOWS, POSITIONS = 6, 16


@pytest.fixture(scope="module")
def lora(make_lora: MakeLora, smollm2_path: Path) -> Path:
    """A random adapter that changes about half of the next tokens."""
    folder = checkpoint(smollm2_path)
    return make_lora(folder, "random", r=8, lora_alpha=16, target_modules=TARGETS, std=0.2)


@pytest.fixture(scope="module")
def converted(lora: Path, smollm2_path: Path) -> Path:
    return gguf_adapter(lora, smollm2_path)


def test_the_file_holds_every_matrix_and_the_scale(converted: Path) -> None:
    reader = GGUFReader(converted)
    fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.lora.alpha"] == 16.0
    shapes = {one.name: tuple(int(n) for n in reversed(one.shape)) for one in reader.tensors}
    assert len(shapes) == 30 * len(TARGETS) * 2
    assert shapes["blk.29.ffn_down.weight.lora_a"] == (8, 1536)
    assert shapes["blk.29.ffn_down.weight.lora_b"] == (576, 8)
    assert shapes["blk.0.attn_k.weight.lora_b"] == (192, 8)


def test_query_and_key_rows_are_interleaved_and_others_are_not(converted: Path, lora: Path) -> None:
    from safetensors.numpy import load_file

    before = load_file(lora / "adapter_model.safetensors")
    after = {one.name: one.data for one in GGUFReader(converted).tensors}
    layer = "base_model.model.model.layers.4.self_attn"
    query = before[f"{layer}.q_proj.lora_B.weight"]
    moved = after["blk.4.attn_q.weight.lora_b"]
    # Row 1 of a head of 64 is the partner of row 0 in the rotation: row 32 of the other form.
    for head in (0, 8):
        assert (moved[64 * head] == query[64 * head]).all()
        assert (moved[64 * head + 1] == query[64 * head + 32]).all()
        assert (moved[64 * head + 2] == query[64 * head + 1]).all()
    assert (after["blk.4.attn_q.weight.lora_a"] == before[f"{layer}.q_proj.lora_A.weight"]).all()
    assert (after["blk.4.attn_v.weight.lora_b"] == before[f"{layer}.v_proj.lora_B.weight"]).all()


def test_a_conversion_is_made_once_and_again_when_the_adapter_changes(
    lora: Path, smollm2_path: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "copy"
    shutil.copytree(lora, folder, ignore=shutil.ignore_patterns("*.gguf"))
    first = gguf_adapter(folder, smollm2_path)
    made = first.stat()
    assert gguf_adapter(folder, smollm2_path) == first
    assert first.stat() == made
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({n: 2 * one for n, one in tensors.items()}, folder / "adapter_model.safetensors")
    assert gguf_adapter(folder, smollm2_path) != first
    assert not list(folder.glob(".*"))


def test_what_is_no_adapter_for_this_model_is_refused(
    lora: Path, smollm2_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(DeviceError, match="no readable peft adapter"):
        gguf_adapter(tmp_path, smollm2_path)
    with pytest.raises(DeviceError, match="cannot read"):
        gguf_adapter(lora, tmp_path / "nowhere.gguf")
    noise = tmp_path / "noise.gguf"
    noise.write_bytes(b"noise" * 20)
    with pytest.raises(DeviceError, match="no GGUF file"):
        gguf_adapter(lora, noise)


# --- both drivers ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drivers(smollm2_path: Path, lora: Path) -> Iterator[tuple[LanguageModel, LanguageModel]]:
    """torch and llama.cpp with the same weights in half precision, and the adapter on both."""
    sizes: dict[str, Any] = {"context_tokens": 64, "sequences": WINDOWS, "threads": 1}
    torch = TorchLM(ModelSpec("smollm2", smollm2_path, **sizes))
    llama = LlamaCpp(ModelSpec("smollm2", requantised(smollm2_path, "F16"), **sizes))
    torch.attach("random", lora)
    llama.attach("random", lora)
    yield torch, llama
    torch.close()
    llama.close()


def best_tokens(model: LanguageModel, adapter: str | None) -> np.ndarray[Any, Any]:
    """The most likely token after each position of some text, `(positions, windows)`."""
    licence = (Path(__file__).parents[2] / "LICENSE").read_text()
    tokens = model.tokenize(licence)[: WINDOWS * POSITIONS]
    windows = [tokens[start : start + POSITIONS] for start in range(0, len(tokens), POSITIONS)]
    best: list[list[int]] = []
    for sequence in range(WINDOWS):
        model.trim(sequence, 0)
        model.add(sequence, sampling=Sampling(), adapter=adapter)
    for position in range(POSITIONS):
        feeds = [Feed(n, [window[position]], True) for n, window in enumerate(windows)]
        sampled = {one.sequence: one.token for one in model.step(feeds)}
        best.append([sampled[n] for n in range(WINDOWS)])
    return np.array(best)


def test_both_drivers_say_the_same_with_an_adapter(
    drivers: tuple[LanguageModel, LanguageModel],
) -> None:
    torch, llama = drivers
    base = best_tokens(torch, None)
    adapted = best_tokens(torch, "random")
    assert (adapted != base).mean() > 0.4
    assert (best_tokens(llama, "random") == adapted).mean() >= 0.97
    assert (best_tokens(llama, None) == base).mean() >= 0.97
