"""What helps a classifier that has few rows of each class.

Owns no state: functions on a batch. Random numbers are torch's, which checkpoints keep.
Sources: Khosla et al., "Supervised Contrastive Learning", 2020 (arXiv 2004.11362); Gunel et al.,
"Supervised Contrastive Learning for Pre-trained Language Model Fine-tuning", 2021 (2011.01403).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmos.drivers.training.task import Item

if TYPE_CHECKING:
    import torch

TEMPERATURE = 0.1  # of likenesses; the lower, the more the nearest rows count


def thinned(items: Sequence[Item], share: float) -> list[Item]:
    """The items without about this share of their tokens; the first and the last one stay."""
    import torch

    found: list[Item] = []
    for item in items:
        stays = (torch.rand(len(item.tokens)) >= share).tolist()
        stays[0] = stays[-1] = True
        kept = [token for token, is_kept in zip(item.tokens, stays, strict=True) if is_kept]
        found.append(item._replace(tokens=tuple(kept)))
    return found


def contrast(vectors: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """How far rows `(rows, width)` are from those of their class, against all others, summed.

    A row whose class no other row of the batch has adds nothing.
    """
    import torch

    units = torch.nn.functional.normalize(vectors, dim=1)
    itself = torch.eye(len(units), dtype=torch.bool, device=units.device)
    likeness = (units @ units.T / TEMPERATURE).masked_fill(itself, -1e9)
    partners = ((classes[:, None] == classes[None, :]) & ~itself).float()
    chances = likeness.log_softmax(dim=1)
    return -((chances * partners).sum(dim=1) / partners.sum(dim=1).clamp(min=1)).sum()
