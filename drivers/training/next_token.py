"""The loss of a decoder on the tokens that it is to say next, over rows packed or padded.

Owns how rows become one forward pass, with logits only where there is a target: with a large
vocabulary these cost more than the rest of a small model. Packed rows lie side by side in one row
of a batch, and attention keeps them apart, so nothing is padded and each has the loss that it has
alone. Refuses to know what the tokens are and how weights are stepped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos.drivers.training.decoder import Decoder
from llmos.drivers.training.task import Item, Measured
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonValue

if TYPE_CHECKING:
    import torch


class Targets(NamedTuple):
    """A row of tokens; the first `given` of them (at least one) are context."""

    tokens: tuple[int, ...]
    given: int

    @property
    def asked(self) -> int:
        """How many of the tokens are targets."""
        return len(self.tokens) - self.given


class NextToken:
    """Loss and scores of rows whose item's payload is the number of given tokens.

    The part of a `Task` that the decoder objectives share.
    """

    metric = "loss"
    is_higher_better = False

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def loss(self, model: Any, items: Sequence[Item], /) -> tuple[torch.Tensor, float]:
        """The negative log-likelihood of the items' targets, summed, and their count."""
        rows = [Targets(item.tokens, item.payload) for item in items]
        with self._decoder.precision():
            found = log_likelihoods(model, rows, self._decoder)
        return -found.sum(), float(len(found))

    def evaluate(self, model: Any, items: Sequence[Item], /, *, batch_size: int) -> Measured:
        """The mean loss per target token in nats, its exponential, and each row's.

        Raises: SyscallError("failed") when the loss is not a number.
        """
        import torch

        model.eval()
        places = sorted(range(len(items)), key=lambda place: len(items[place].tokens))
        told: dict[int, JsonValue] = {}
        total, tokens = 0.0, 0
        with torch.inference_mode(), self._decoder.precision():
            # Rows of like length share a batch: less padding, and the same sum.
            for first in range(0, len(places), batch_size):
                part = places[first : first + batch_size]
                rows = [Targets(items[one].tokens, items[one].payload) for one in part]
                found = log_likelihoods(model, rows, self._decoder).split([r.asked for r in rows])
                for one, row, logs in zip(part, rows, found, strict=True):
                    loss = -logs.sum().item()
                    total += loss
                    tokens += row.asked
                    told[one] = {
                        "origin": items[one].origin,
                        "loss": loss / row.asked if math.isfinite(loss) else None,
                        "tokens": row.asked,
                    }
        if not math.isfinite(total):
            raise SyscallError(
                "failed", f"the loss on the {len(items)} rows is not a number ({total})"
            )
        mean = total / tokens
        scores = {"loss": mean, "perplexity": math.exp(min(mean, 700.0)), "tokens": float(tokens)}
        return Measured(scores, [told[place] for place in range(len(items))])


def log_likelihoods(model: Any, rows: Sequence[Targets], decoder: Decoder) -> torch.Tensor:
    """The log-likelihood of each target, `(targets,)`, the rows one after the other."""
    import torch

    logits = (_packed if decoder.is_packed else _padded)(model, rows, decoder.virtual_tokens)
    labels = torch.tensor([token for row in rows for token in row.tokens[row.given :]])
    return -torch.nn.functional.cross_entropy(
        logits.float(), labels.to(logits.device), reduction="none"
    )


def _packed(model: Any, rows: Sequence[Targets], virtual_tokens: int) -> torch.Tensor:
    """Logits `(targets, vocabulary)` from rows side by side."""
    import torch

    device = model.device
    asked: list[int] = []  # the places before the targets
    start = 0
    for row in rows:
        asked += range(start + row.given - 1, start + len(row.tokens) - 1)
        start += len(row.tokens)
    tokens = torch.tensor([[token for row in rows for token in row.tokens]], device=device)
    positions = torch.cat([torch.arange(len(row.tokens)) for row in rows])[None]
    logits: torch.Tensor = model(
        input_ids=tokens,
        position_ids=positions.to(device),
        logits_to_keep=torch.tensor(asked, device=device),
        use_cache=False,
        lengths=[len(row.tokens) for row in rows],
    ).logits  # (1, targets, vocabulary)
    return logits[0]


def _padded(model: Any, rows: Sequence[Targets], virtual_tokens: int) -> torch.Tensor:
    """Logits `(targets, vocabulary)` from rows one below the other, filled up to the longest."""
    import torch

    device = model.device
    width = max(len(row.tokens) for row in rows)
    tokens = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    asked = torch.zeros((len(rows), width), dtype=torch.bool)  # the places before the targets
    for index, row in enumerate(rows):
        tokens[index, : len(row.tokens)] = torch.tensor(row.tokens)
        mask[index, : len(row.tokens)] = 1
        asked[index, row.given - 1 : len(row.tokens) - 1] = True
    columns = asked.any(dim=0).nonzero().squeeze(1)  # those where some row has a target
    logits: torch.Tensor = model(
        input_ids=tokens.to(device),
        attention_mask=mask.to(device),
        logits_to_keep=(columns + virtual_tokens).to(device),
        use_cache=False,
    ).logits  # (rows, columns, vocabulary)
    return logits[asked[:, columns].to(device)]
