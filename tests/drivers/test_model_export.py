"""Versions merged with their base and written, with a tiny model."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.model_export import ExportJob, export
from llmos.syscalls.errors import SyscallError


def adapted(tmp_path: Path, base: Path, kind: str) -> tuple[Path, Any]:
    """A peft folder whose adapter changes something, and the logits that it gives."""
    import torch
    from peft import IA3Config, LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if kind == "ia3":
        settings: Any = IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
        )
    else:
        settings = LoraConfig(r=2, target_modules="all-linear", use_dora=kind == "dora")
    changed: Any = get_peft_model(model, settings)
    for name, weight in changed.named_parameters():
        if "lora_B" in name or "ia3" in name:
            weight.data.normal_(1.0 if "ia3" in name else 0.0, 0.2)
    folder = tmp_path / kind
    changed.save_pretrained(folder)
    return folder, logits(changed)


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.arange(20)[None]).logits


def job(base: Path, target: Path, **options: Any) -> ExportJob:
    values = {"weights": str(base), "base": str(base), "target": str(target), **options}
    return ExportJob.model_validate({"format": "safetensors", **values})


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_merged_weights_compute_what_the_adapter_did(
    tmp_path: Path, tiny_model_path: Path, kind: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, wanted = adapted(tmp_path, tiny_model_path, kind)
    target = tmp_path / "merged"
    size = export(job(tiny_model_path, target, adapter=str(folder)))
    assert size == sum(file.stat().st_size for file in target.iterdir())
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    merged: Any = AutoModelForCausalLM.from_pretrained(target)
    assert not torch.allclose(logits(base), wanted, atol=1e-3)
    assert torch.allclose(logits(merged), wanted, atol=1e-4)
    assert AutoTokenizer.from_pretrained(target)("hi")["input_ids"]


def test_an_export_replaces_an_earlier_one_and_leaves_nothing_beside_it(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    target = tmp_path / "out" / "merged"
    for _ in range(2):
        export(job(tiny_model_path, target))
    assert [path.name for path in target.parent.iterdir()] == ["merged"]


def test_a_full_disk_is_a_storage_error_and_nothing_is_left(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    target = tmp_path / "out" / "merged"
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(SyscallError) as problem:
            export(job(tiny_model_path, target))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert problem.value.code == "storage"
    assert list(target.parent.iterdir()) == []


def test_what_cannot_be_merged_is_refused_in_words(tmp_path: Path, tiny_model_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text("{}")
    for options, word in (
        ({"adapter": str(broken)}, "cannot be merged"),
        ({"format": "gguf"}, "vocabulary"),
    ):
        with pytest.raises(SyscallError, match=word) as problem:
            export(job(tiny_model_path, tmp_path / "out", **options))
        assert problem.value.code == "not_available"


def test_the_worker_answers_in_one_line(tmp_path: Path, tiny_model_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text(job(tiny_model_path, tmp_path / "out", format="gguf").model_dump_json())
    command = [sys.executable, "-P", "-m", "llmos.drivers.model_export", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert (answer["event"], answer["code"]) == ("error", "not_available")
