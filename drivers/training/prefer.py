"""The objective `prefer`: of two answers to a conversation the better one becomes likelier.

Owns the loss of direct preference optimisation. The reference is the same model as training found
it: without its adapter, or with the weights of the adapter that training goes on from. So no second
one is in memory, and a method without an adapter cannot train this.
Source: Rafailov et al. 2023 (arXiv 2305.18290).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos.drivers.rows.kinds import PreferRow
from llmos.drivers.training.decoder import Decoder, open_decoder
from llmos.drivers.training.instruct import built, encode_row
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.methods import RATES
from llmos.drivers.training.next_token import Targets, log_likelihoods
from llmos.drivers.training.objectives import Rows
from llmos.drivers.training.rendering import TokenizerChat
from llmos.drivers.training.task import Built, Encoded, Item, Measured
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonValue

if TYPE_CHECKING:
    import torch

# How dear it is to move away from the reference: the paper's own value.
BETA = 0.1
# Preferences need gentler steps than examples: the answers are the model's own kind already.
RATE_SHARE = 0.25
METHODS = ("lora", "qlora", "dora", "ia3")


class Pair(NamedTuple):
    """An item's payload: the two answers, each with its prompt."""

    chosen: Targets
    rejected: Targets


def without_adapter(model: Any) -> AbstractContextManager[Any]:
    """Within it a model computes without its adapter."""
    return model.disable_adapter()


class AsNow:
    """Called on a model: within it, what is trained has the weights that it has now."""

    def __init__(self, model: Any) -> None:
        self._start = {
            name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
        }

    @contextmanager
    def __call__(self, model: Any) -> Generator[None]:
        trained = {name: p for name, p in model.named_parameters() if name in self._start}
        later = {name: p.data for name, p in trained.items()}
        for name, parameter in trained.items():
            parameter.data = self._start[name]
        try:
            yield
        finally:
            for name, parameter in trained.items():
                parameter.data = later[name]


class PreferTask:
    """Trains an adapter on pairs of answers. Satisfies `Task`.

    Within `as_reference` of the model it computes what the reference does.
    """

    metric = "loss"
    is_higher_better = False

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_length_tokens: int,
        as_reference: Callable[[Any], AbstractContextManager[Any]] = without_adapter,
    ) -> None:
        self._decoder = decoder
        self._as_reference = as_reference
        self._chat = TokenizerChat(decoder.tokenizer)
        self._max_length_tokens = max_length_tokens
        self._references: dict[str, tuple[float, float]] = {}

    def encode(self, rows: Sequence[PreferRow], /) -> Encoded:
        """Render both answers; a pair with one over the limit is cut in both, or left out."""
        kept: list[Item] = []
        truncated: list[str] = []
        skipped: list[str] = []
        most = self._max_length_tokens
        for row in rows:
            sides = [
                encode_row(row.messages, answer, row.origin, self._chat, tools=row.tools)
                for answer in (row.chosen, row.rejected)
            ]
            if sides[0].payload >= most:
                skipped.append(row.origin)
                continue
            if max(len(side.tokens) for side in sides) > most:
                truncated.append(row.origin)
            pair = Pair(*(Targets(side.tokens[:most], side.payload) for side in sides))
            kept.append(Item(pair.chosen.tokens + pair.rejected.tokens, pair, row.origin))
        return Encoded(tuple(kept), tuple(truncated), tuple(skipped))

    def loss(self, model: Any, items: Sequence[Item], /) -> tuple[torch.Tensor, float]:
        """The summed loss, and the number of pairs."""
        import torch

        margins = self._margins(model, items)
        return -torch.nn.functional.logsigmoid(margins).sum(), float(len(items))

    def evaluate(self, model: Any, items: Sequence[Item], /, *, batch_size: int) -> Measured:
        """The mean loss, how often the better answer gained more, and by how much on average."""
        import torch

        model.eval()
        told: list[JsonValue] = []
        margins: list[float] = []
        with torch.inference_mode():
            for first in range(0, len(items), batch_size):
                part = items[first : first + batch_size]
                found = self._margins(model, part).tolist()
                margins += found
                told += [
                    {"origin": item.origin, "margin": margin}
                    for item, margin in zip(part, found, strict=True)
                ]
        held = torch.tensor(margins)
        loss = -torch.nn.functional.logsigmoid(held).mean().item()
        if loss != loss:
            raise SyscallError("failed", f"the loss on the {len(items)} rows is not a number")
        scores = {
            "loss": loss,
            "accuracy": (held > 0).float().mean().item(),
            "margin": held.mean().item(),
        }
        return Measured(scores, told)

    def _margins(self, model: Any, items: Sequence[Item]) -> torch.Tensor:
        """By how much more than the reference the model prefers the better answers, `(pairs,)`."""
        import torch

        references = torch.tensor([self._reference(model, item) for item in items])
        rows = [row for item in items for row in item.payload]
        found = self._likelihoods(model, rows).view(-1, 2)  # (pairs, chosen and rejected)
        gains = found - references.to(found.device)
        return BETA * (gains[:, 0] - gains[:, 1])

    def _reference(self, model: Any, item: Item) -> tuple[float, float]:
        """Both answers' likelihoods by the reference.

        Computed once, and for each pair alone: they must not depend on the batch that it was in.
        """
        import torch

        known = self._references.get(item.origin)
        if known is None:
            was_training = model.training
            model.eval()
            with torch.no_grad(), self._as_reference(model):
                chosen, rejected = self._likelihoods(model, item.payload).tolist()
            model.train(was_training)
            known = self._references[item.origin] = (chosen, rejected)
        return known

    def _likelihoods(self, model: Any, rows: Sequence[Targets]) -> torch.Tensor:
        import torch

        with self._decoder.precision():
            found = log_likelihoods(model, rows, self._decoder)
        return torch.stack([part.sum() for part in found.split([row.asked for row in rows])])


def build(job: TrainJob, device: str, rows: Rows) -> Built:
    """A decoder that learns preferences.

    Raises: DeviceError; SyscallError("not_available") for a method that has no adapter.
    """
    if job.method not in METHODS:
        raise SyscallError(
            "not_available",
            f"method: prefer trains an adapter beside the model that it compares with, and "
            f"{job.method} has none; available: {', '.join(METHODS)}",
            field="method",
            available=list(METHODS),
        )
    decoder = open_decoder(job, device)
    goes_on = job.parent_kind == "adapter"
    task = PreferTask(
        decoder,
        max_length_tokens=job.max_length_tokens,
        as_reference=AsNow(decoder.model) if goes_on else without_adapter,
    )
    return built(decoder, task, job)._replace(rate=RATES[job.method] * RATE_SHARE)
