"""What torch raises in a forward pass, as the driver contract's error."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from llmos.drivers.contract import DeviceError


@contextmanager
def torch_errors(device: str, doing: str) -> Generator[None]:
    """Turn what torch raises in this block into a `DeviceError`: "torch failed to `doing`".

    Out of memory is not fatal; after anything else a device other than the CPU is in doubt.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as problem:
        torch.cuda.empty_cache()
        raise DeviceError(f"{device} is out of memory: {problem}") from problem
    except Exception as problem:
        raise DeviceError(
            f"torch failed to {doing}: {problem}", is_fatal=device != "cpu"
        ) from problem
