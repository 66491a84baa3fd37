"""Gradient descent on a model's trainable weights, and the loss that it lowers.

Owns the arithmetic: padding, loss on target tokens only, AdamW with linear warm-up and decay,
clipping. Refuses to know files, processes, and which weights those are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos.drivers.training.instruct import EncodedRow, batches, shuffled_batches
from llmos.syscalls.errors import SyscallError

if TYPE_CHECKING:
    import torch

IGNORED = -100  # the label that torch's cross entropy leaves out
WARMUP_SHARE = 0.05
CLIP_NORM = 1.0


class Step(NamedTuple):
    """One step as taken. `loss` is the mean over the batch's targets before the step."""

    number: int  # from 1
    loss: float
    learning_rate: float
    tokens: int  # of the batch, padding not counted


class Score(NamedTuple):
    """`loss` is the mean negative log-likelihood per target token, in nats."""

    loss: float
    rows: int
    tokens: int


def planned_steps(rows: int, *, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Steps of a run: the epochs' batches, rounded up, and no more than `max_steps`."""
    steps = max(1, math.ceil(math.ceil(rows / batch_size) * epochs))
    return steps if max_steps is None else min(steps, max_steps)


def learning_rate_at(step: int, *, steps: int, peak: float) -> float:
    """The rate of a step (from 1): up to the peak over the first 5%, then down towards 0."""
    warmup = max(1, round(steps * WARMUP_SHARE))
    if step <= warmup:
        return peak * step / warmup
    return peak * (steps - step + 1) / (steps - warmup + 1)


def train(
    model: Any,
    rows: Sequence[EncodedRow],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> Iterator[Step]:
    """Take `steps` steps, yielding after each; stop iterating to stop training.

    Raises: SyscallError("failed") naming the step and its rows when the loss or its gradient is
    not a number; the adapter then holds the step before.
    """
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    order = shuffled_batches(rows, batch_size=batch_size, seed=seed)
    model.train()
    for number, batch in zip(range(1, steps + 1), order, strict=False):
        rate = learning_rate_at(number, steps=steps, peak=learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        summed, targets = summed_loss(model, batch)
        loss = summed / targets
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            raise _not_a_number(number, loss.item(), norm.item(), batch)
        optimizer.step()
        yield Step(number, loss.item(), rate, sum(len(row.tokens) for row in batch))


def _not_a_number(step: int, loss: float, norm: float, batch: Sequence[EncodedRow]) -> SyscallError:
    origins = [row.origin for row in batch]
    return SyscallError(
        "failed",
        f"training stopped at step {step}: loss {loss}, gradient norm {norm}, on "
        f"{', '.join(origins)}; look at these rows or lower the learning rate",
        step=step,
        rows=origins,
    )


def evaluate(model: Any, rows: Sequence[EncodedRow], *, batch_size: int) -> Score:
    """The loss on rows, nothing trained. The model is left in evaluation mode.

    Raises: SyscallError("failed") when the loss is not a number.
    """
    import torch

    model.eval()
    total, tokens = 0.0, 0
    with torch.inference_mode():
        # Rows of like length share a batch: less padding, and the same sum.
        for batch in batches(sorted(rows, key=lambda row: len(row.tokens)), batch_size=batch_size):
            summed, targets = summed_loss(model, batch)
            total += summed.item()
            tokens += targets
    if not math.isfinite(total):
        raise SyscallError("failed", f"the loss on the {len(rows)} rows is not a number ({total})")
    return Score(total / tokens, len(rows), tokens)


def summed_loss(model: Any, batch: Sequence[EncodedRow]) -> tuple[torch.Tensor, int]:
    """The negative log-likelihood of a batch's targets, summed (a scalar), and their count.

    Only columns in which some row has a target get logits: with a large vocabulary these cost more
    than the rest of a small model.
    """
    import torch

    width = max(len(row.tokens) for row in batch)
    inputs = torch.zeros((len(batch), width), dtype=torch.long)  # (batch, tokens); padding masked
    mask = torch.zeros((len(batch), width), dtype=torch.long)  # (batch, tokens)
    labels = torch.full((len(batch), width), IGNORED)  # (batch, tokens); the token *after* each
    for index, row in enumerate(batch):
        tokens = torch.tensor(row.tokens)
        inputs[index, : len(tokens)] = tokens
        mask[index, : len(tokens)] = 1
        labels[index, row.prompt_tokens - 1 : len(tokens) - 1] = tokens[row.prompt_tokens :]
    columns = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)  # (kept,)
    device = model.device
    logits: torch.Tensor = model(
        input_ids=inputs.to(device),
        attention_mask=mask.to(device),
        logits_to_keep=columns.to(device),
        use_cache=False,
    ).logits  # (batch, kept, vocabulary)
    summed = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1),
        labels[:, columns].flatten().to(device),
        ignore_index=IGNORED,
        reduction="sum",
    )
    return summed, sum(row.target_tokens for row in batch)
