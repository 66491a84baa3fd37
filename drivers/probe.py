"""What can compute here: each driver and device, usable or why not.

Looks without loading: a library is found by its specification, and only the question whether CUDA
works imports torch, when torch is installed.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import psutil

from llmos.drivers.contract import Available


def probe() -> list[Available]:
    """Every driver and device that llmos knows, in the order it prefers them.

    Takes a second or two when torch has to be imported for the question about CUDA.
    """
    return [
        _on_cpu("llama_cpp", "llama_cpp", "llama-cpp-python"),
        _on_cpu("torch", "torch", "torch"),
        *_cuda(),
        _on_cpu("embedding", "transformers", "transformers"),
    ]


def _on_cpu(driver: str, module: str, package: str) -> Available:
    if find_spec(module) is None:
        return Available(driver, "cpu", False, reason=f"the package {package} is not installed")
    return Available(
        driver,
        "cpu",
        True,
        memory_bytes=psutil.virtual_memory().total,
        details={package: _version(package), **_cpu()},
    )


def _cuda() -> list[Available]:
    if find_spec("torch") is None:
        reason = "the package torch is not installed"
        return [Available("torch", "cuda", False, reason=reason)]
    import torch

    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} was built without CUDA"
        return [Available("torch", "cuda", False, reason=reason)]
    if not torch.cuda.is_available():
        reason = f"torch {torch.__version__} finds no CUDA device; check the driver (nvidia-smi)"
        return [Available("torch", "cuda", False, reason=reason)]
    found: list[Available] = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        details = {
            "name": card.name,
            "compute": f"{card.major}.{card.minor}",
            "torch": str(torch.__version__),
        }
        device = f"cuda:{index}"
        found.append(
            Available("torch", device, True, memory_bytes=card.total_memory, details=details)
        )
    return found


def _cpu() -> Mapping[str, str]:
    return {
        "machine": platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "free_bytes": str(psutil.virtual_memory().available),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
