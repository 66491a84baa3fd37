"""A linear layer over the few rows of a step, by the fastest product that the device has.

torch multiplies single precision on a CPU by MKL, which for 1 to 64 rows takes up to three times as
long as oneDNN, which the same torch carries and uses for half precision only (numbers in
docs/decisions/0006).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`rows @ weight.T + bias`, `(rows, inputs)` by `(outputs, inputs)`."""
    import torch

    product = _onednn()
    if product is None or rows.device.type != "cpu" or rows.dtype != torch.float32:
        return torch.nn.functional.linear(rows, weight, bias)
    result: torch.Tensor = product(rows, weight, bias, "none", [], "")
    return result


@cache
def _onednn() -> Any:
    """oneDNN's product in any precision; None where this torch was built without it."""
    import torch

    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)
