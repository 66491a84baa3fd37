"""Drivers under the contract suite: each is opened once a module and emptied after each test."""

from __future__ import annotations

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
