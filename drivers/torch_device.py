"""What torch computes on: the device, the number format, the threads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llmos.drivers.contract import DeviceError, ModelSpec

if TYPE_CHECKING:
    import torch

_DTYPES = ("float32", "bfloat16", "float16")


def use_device(spec: ModelSpec) -> torch.dtype:
    """Set torch's threads, which are one number for the whole process, and give the number format:
    single precision on a CPU and bfloat16 on a GPU, unless the spec names another.

    Raises: DeviceError for a device or format that is not here.
    """
    import torch

    kind = spec.device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise DeviceError(f"torch serves the devices cpu and cuda here, not {spec.device}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError("torch finds no CUDA device")
    if spec.dtype not in ("auto", *_DTYPES):
        raise DeviceError(f"dtype is auto or one of {', '.join(_DTYPES)}, not {spec.dtype}")
    torch.set_num_threads(spec.threads or len(os.sched_getaffinity(0)))
    by_device = "bfloat16" if kind == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, by_device if spec.dtype == "auto" else spec.dtype)
    return dtype
