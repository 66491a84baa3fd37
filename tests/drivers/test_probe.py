"""What can compute here."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

import pytest

from llmos.drivers import probe as probing
from llmos.drivers.probe import probe


def test_every_driver_is_listed_once_per_device() -> None:
    found = probe()
    assert {("llama_cpp", "cpu"), ("torch", "cpu"), ("embedding", "cpu")} <= {
        (one.driver, one.device) for one in found
    }
    assert len({(one.driver, one.device) for one in found}) == len(found)
    for one in found:
        assert one.is_available == (one.reason is None)
        assert one.is_available == (one.memory_bytes is not None)


def test_cuda_is_listed_with_the_reason_when_it_is_absent() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    (cuda,) = [one for one in probe() if one.device.startswith("cuda")]
    assert not cuda.is_available
    assert cuda.reason is not None
    assert "CUDA" in cuda.reason


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> ModuleSpec | None:
        return None if name in ("llama_cpp", "torch") else find_spec(name)

    monkeypatch.setattr(probing, "find_spec", find)
    reasons = {(one.driver, one.device): one.reason for one in probe()}
    assert reasons["llama_cpp", "cpu"] == "the package llama-cpp-python is not installed"
    assert reasons["torch", "cuda"] == "the package torch is not installed"
    assert reasons["embedding", "cpu"] is None


HEAVY = ("torch", "transformers", "llama_cpp", "llguidance", "faiss")


@pytest.mark.parametrize(
    "module", ["probe", "llama_cpp", "scripted", "opening", "chat", "constraint", "sampling"]
)
def test_importing_a_driver_loads_no_heavy_library(module: str) -> None:
    code = (
        f"import sys, llmos.drivers.{module}\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
