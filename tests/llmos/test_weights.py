"""What a model opens with: what was written down, else what was tuned, else the file as it is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from llmos import weights
from llmos.config import ModelConfig, load_config
from llmos.drivers.contract import DeviceError, ModelSpec
from llmos.memory import tuned as tuned_module
from llmos.memory.tuned import Choice, Tuned, fingerprint, keep, this_machine
from llmos.syscalls.errors import ConfigError
from llmos.weights import chosen, fitted, in_force

CHOICE = Choice(weights="BF16", threads=3, micro_batch_tokens=128, kv_type="q8_0")


@pytest.fixture(autouse=True)
def _tuned_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are read here, and copies are named but not made."""
    monkeypatch.setattr(weights, "recall", tuned_module.recall)
    monkeypatch.setattr(weights, "requantised", named_copy)


def named_copy(source: Path, format: str) -> Path:
    return source.with_name(f"{source.stem}.{format}.gguf")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "toy.gguf"
    path.write_bytes(b"GGUF and more")
    return path


@pytest.fixture
def folder(tmp_path: Path, source: Path) -> Path:
    """Where a tuning of the source is kept."""
    record = Tuned(
        model="toy",
        machine=this_machine(),
        fingerprint=fingerprint(source),
        choice=CHOICE,
        rows=(),
        is_quick=True,
        made=True,
        took_s=1,
        tuned_at=0,
    )
    keep(tmp_path / "tuned", record)
    return tmp_path / "tuned"


def config(**settings: Any) -> ModelConfig:
    return ModelConfig.model_validate({"source": "toy", "driver": "llama_cpp", **settings})


def opened(source: Path, model: ModelConfig, folder: Path) -> ModelSpec:
    spec = ModelSpec("toy", source, batch_tokens=model.batch_tokens, threads=model.threads)
    return fitted(spec, model, folder)


def test_a_tuned_model_opens_with_what_was_found(source: Path, folder: Path) -> None:
    spec = opened(source, config(), folder)
    assert spec.path.name == "toy.BF16.gguf"
    assert (spec.threads, spec.micro_batch_tokens, spec.kv_type) == (3, 128, "q8_0")


def test_what_somebody_wrote_down_holds(source: Path, folder: Path) -> None:
    spec = opened(source, config(threads=1), folder)
    assert (spec.path.name, spec.threads, spec.kv_type) == ("toy.BF16.gguf", 1, "q8_0")
    said = chosen(ModelSpec("toy", source), CHOICE, said={"kv_type", "threads"})
    assert (said.kv_type, said.threads, said.micro_batch_tokens) == ("f16", None, 128)


@pytest.mark.parametrize("driver", ["llama_cpp", "torch"])
def test_shipped_weights_and_other_drivers_are_left_alone(
    source: Path, folder: Path, driver: str
) -> None:
    model = config(driver=driver, weights="shipped" if driver == "llama_cpp" else "tuned")
    assert opened(source, model, folder) == ModelSpec("toy", source)


def test_a_format_that_is_named_is_that_copy_with_no_settings_of_the_tuning(
    source: Path, folder: Path
) -> None:
    assert opened(source, config(weights="F16"), folder) == ModelSpec(
        "toy", source.with_name("toy.F16.gguf")
    )


def test_an_untuned_model_opens_as_shipped_with_one_line_of_advice(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "llmos"):
        assert opened(source, config(), tmp_path / "nothing") == ModelSpec("toy", source)
    assert caplog.messages == [
        "toy.gguf opens as shipped; `llmos tune toy` finds what is fastest on this machine"
    ]


def test_a_tuned_copy_that_cannot_be_made_again_is_a_warning_and_a_named_one_an_error(
    source: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(source: Path, format: str) -> Path:
        raise DeviceError("no space left")

    monkeypatch.setattr(weights, "requantised", full)
    assert opened(source, config(), folder).path == source
    assert "toy opens as shipped: no space left" in caplog.text
    with pytest.raises(DeviceError, match="no space left"):
        opened(source, config(weights="BF16"), folder)


def test_which_weights_are_in_force_is_said_with_the_reason(source: Path, folder: Path) -> None:
    assert str(in_force(config(), source, folder)) == "BF16 (tuned)"
    assert str(in_force(config(), source, folder / "nothing")) == "shipped (not tuned)"
    assert str(in_force(config(weights="Q8_0"), source, folder)) == "Q8_0 (configured)"


def test_a_format_is_refused_for_drivers_that_have_none() -> None:
    with pytest.raises(ConfigError, match="the torch driver takes the file as shipped"):
        config(driver="torch", weights="BF16")


def test_defaults_of_known_models_stay_open_to_the_tuning() -> None:
    known = load_config(environment={"LLMOS_MODELS__SMOLLM2__THREADS": "2"}).models["smollm2"]
    assert "threads" in known.model_fields_set
    assert "batch_tokens" not in known.model_fields_set
