"""Drivers under the contract suite: each is opened once a module and emptied after each test."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.contract import LanguageModel, ModelSpec
from llmos.drivers.opening import open_language_model

# A driver's name, and whether it needs the real model. A new driver joins the suite here.
DRIVERS: dict[str, bool] = {"scripted": False, "llama_cpp": True, "torch": True}
# One thread: two that wait for each other crawl when the machine has other work.
SPEC = ModelSpec(
    "under_test", Path("scripted"), context_tokens=512, sequences=6, batch_tokens=192, threads=1
)

Opener = Callable[..., LanguageModel]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.model] if is_real else [])
        for name, is_real in DRIVERS.items()
    ],
)
def driver(request: pytest.FixtureRequest) -> Any:
    """The name of the driver under test."""
    return request.param


@pytest.fixture(scope="module")
def open_model(driver: Any, request: pytest.FixtureRequest) -> Opener:
    """Open another model of the driver under test, with changed sizes."""
    path: Path = request.getfixturevalue("smollm2_path") if DRIVERS[driver] else SPEC.path
    return lambda **sizes: open_language_model(driver, replace(SPEC, path=path, **sizes))


@pytest.fixture(scope="module")
def opened(open_model: Opener) -> Iterator[LanguageModel]:
    model = open_model()
    yield model
    model.close()


@pytest.fixture
def model(opened: LanguageModel) -> Iterator[LanguageModel]:
    """The model under test, with all sequences empty."""
    yield opened
    for sequence in range(opened.info.sequences):
        opened.trim(sequence, 0)


@pytest.fixture(scope="session")
def make_lora(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a peft folder of a LoRA adapter with random weights on a transformers folder, large
    enough to change what the model says.
    """
    import torch

    def make(base: Path, name: str, *, seed: int = 1, std: float = 0.3, **settings: Any) -> Path:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        options = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}
        config = LoraConfig(**{**options, **settings}, task_type="CAUSAL_LM")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            adapted = get_peft_model(model, config)
        torch.manual_seed(seed)
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=std)
        folder = tmp_path_factory.mktemp("adapters") / name
        adapted.save_pretrained(folder)
        return folder

    return make
