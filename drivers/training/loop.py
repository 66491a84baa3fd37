"""Gradient descent on a model's trainable weights, whatever the objective.

Owns the arithmetic of a step: an effective batch from micro-batches, AdamW with warm-up and decay,
clipping, the answer to a loss that is no number and to memory that runs out. Refuses to know files,
processes, and what a loss is made of. A run's state can be taken out and put back: steps after that
are the same to the last bit, on the same machine with the same threads.
Source: Loshchilov and Hutter 2019 (AdamW, arXiv 1711.05101).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmos.drivers.length_batches import BATCH_TOKENS
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.methods import parameter_groups
from llmos.drivers.training.order import Order, PieceSize, micro_batches, planned_steps
from llmos.drivers.training.task import Built, Item
from llmos.syscalls.errors import SyscallError

if TYPE_CHECKING:
    import torch

CLIP_NORM = 1.0
PIECES = {
    "cpu": PieceSize(BATCH_TOKENS["cpu"], 256),
    "cuda": PieceSize(BATCH_TOKENS["cuda"], 16_384),
}


class Step(NamedTuple):
    """One step as taken. `loss` is the mean over the batch before the step."""

    number: int  # from 1
    loss: float
    learning_rate: float
    tokens: int  # of the batch, padding not counted
    padded_tokens: int  # what was computed on top of them


class _Summed(NamedTuple):
    """A batch's loss and gradient, which lies in the parameters, before the division."""

    loss: float
    weight: float
    padded_tokens: int


class Run:
    """A run at some step: weights, optimizer and place in the data."""

    def __init__(self, built: Built, items: Sequence[Item], job: TrainJob, *, device: str) -> None:
        import torch

        self._built = built
        self._items = items
        self._device = device
        self._order = Order(items, batch_size=job.batch_size, seed=job.seed, shares=built.shares)
        self.steps_per_epoch = self._order.batches_per_epoch
        self.steps = planned_steps(self.steps_per_epoch, epochs=job.epochs, max_steps=job.max_steps)
        self.step = 0  # the last one taken
        self.micro_batch = min(job.micro_batch or job.batch_size, job.batch_size)
        self._peak = job.learning_rate or built.rate
        self._warmup = max(1, round(self.steps * job.warmup_share))
        self.weights: dict[str, torch.Tensor] = {
            name: p for name, p in built.model.named_parameters() if p.requires_grad
        }
        self._optimizer = torch.optim.AdamW(
            parameter_groups(
                self.weights.items(), weight_decay=job.weight_decay, layer_decay=job.layer_decay
            ),
            lr=self._peak,
            foreach=True,
        )
        self._share = job.average or 0.0
        self._start: dict[str, torch.Tensor] = {}
        if self._share:
            self._start = {name: p.detach().clone() for name, p in self.weights.items()}
        torch.manual_seed(job.seed)

    def take_step(self) -> Step:
        """Take the next step. A micro-batch that does not fit in memory is halved, for good.

        Raises: SyscallError("failed") naming the step and its rows when the loss or its gradient is
        not a number, the weights then being those of the step before; or when not even one row
        fits in memory.
        """
        import torch

        number = self.step + 1
        items = [self._items[place] for place in self._order.batch(number)]
        rate = learning_rate_at(number, steps=self.steps, warmup=self._warmup, peak=self._peak)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self._built.model.train()
        summed = self._summed_gradient(items)
        weight = max(summed.weight, 1e-12)  # 0: rows without a target, which teach nothing
        for parameter in self.weights.values():
            if parameter.grad is not None:
                parameter.grad.div_(weight)
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), CLIP_NORM).item()
        if not (math.isfinite(summed.loss) and math.isfinite(norm)):
            self._optimizer.zero_grad(set_to_none=True)
            raise self._not_a_number(number, summed.loss, norm, items)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step = number
        tokens = sum(len(item.tokens) for item in items)
        return Step(number, summed.loss / weight, rate, tokens, summed.padded_tokens)

    def average(self) -> None:
        """Mix into the weights those that training began with, by the share that the job asks for.

        Source: Wortsman et al. 2022 (WiSE-FT, arXiv 2109.01903).
        """
        if not self._start:
            return
        mixed = {
            name: self.weights[name].detach().lerp(start, self._share)
            for name, start in self._start.items()
        }
        self.put_weights(mixed)

    # --- the state --------------------------------------------------------------------------------

    def state(self) -> dict[str, torch.Tensor]:
        """All that later steps depend on, as tensors by name; not copied."""
        import torch

        state = {f"weight.{name}": p.detach() for name, p in self.weights.items()}
        for name, parameter in self.weights.items():
            for kind, value in self._optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{kind}.{name}"] = value
        state["random"] = torch.get_rng_state()
        if self._device.startswith("cuda"):
            state["random.cuda"] = torch.cuda.get_rng_state(self._device)
        state["counts"] = torch.tensor([self.step, self.micro_batch])
        return state

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on where another run of the same job was. Raises: KeyError for another job's state."""
        import torch

        with torch.no_grad():
            for name, parameter in self.weights.items():
                parameter.copy_(state[f"weight.{name}"])
        for name, parameter in self.weights.items():
            kinds = ("step", "exp_avg", "exp_avg_sq")
            held = {kind: state.get(f"optimizer.{kind}.{name}") for kind in kinds}
            if held["step"] is not None:  # a weight that got no gradient has no moments
                self._optimizer.state[parameter] = {
                    kind: value if kind == "step" else value.to(parameter.device)
                    for kind, value in held.items()
                    if value is not None
                }
        torch.set_rng_state(state["random"])
        if "random.cuda" in state and self._device.startswith("cuda"):
            torch.cuda.set_rng_state(state["random.cuda"], self._device)
        self.step, self.micro_batch = state["counts"].tolist()

    def put_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Replace the trainable weights, by name."""
        import torch

        with torch.no_grad():
            for name, parameter in self.weights.items():
                parameter.copy_(weights[name])

    # --- a step -----------------------------------------------------------------------------------

    def _summed_gradient(self, items: Sequence[Item]) -> _Summed:
        import torch

        random = torch.get_rng_state()
        while True:
            try:
                return self._add_up(items)
            except (MemoryError, RuntimeError) as problem:
                if not is_out_of_memory(problem):
                    raise
                self._make_smaller(items, problem)
            torch.set_rng_state(random)

    def _add_up(self, items: Sequence[Item]) -> _Summed:
        loss, weight, padded = 0.0, 0.0, 0
        for piece in self._cut(items):
            summed, count = self._built.task.loss(self._built.model, piece)
            summed.backward()
            loss += summed.item()
            weight += count
            if not self._built.is_packed:
                longest = max(len(item.tokens) for item in piece)
                padded += sum(longest - len(item.tokens) for item in piece)
        return _Summed(loss, weight, padded)

    def _cut(self, items: Sequence[Item]) -> list[list[Item]]:
        """A batch's micro-batches."""
        if self._built.is_joint:
            rows = self.micro_batch
            return [list(items[first : first + rows]) for first in range(0, len(items), rows)]
        return micro_batches(
            items,
            rows=self.micro_batch,
            size=PIECES[self._device.partition(":")[0]],
            is_packed=self._built.is_packed,
        )

    def _make_smaller(self, items: Sequence[Item], problem: Exception) -> None:
        import torch

        self._optimizer.zero_grad(set_to_none=True)
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()
        size = min(self.micro_batch, len(items))
        if size == 1:
            longest = max(items, key=lambda item: len(item.tokens))
            raise SyscallError(
                "failed",
                f"memory ran out on a single row of {len(longest.tokens)} tokens "
                f"({longest.origin}); lower max_length_tokens or take a smaller base",
                step=self.step + 1,
                rows=[longest.origin],
            ) from problem
        self.micro_batch = (size + 1) // 2

    def _not_a_number(
        self, step: int, loss: float, norm: float, items: Sequence[Item]
    ) -> SyscallError:
        origins = [item.origin for item in self._to_blame(items)]
        return SyscallError(
            "failed",
            f"training stopped at step {step}: loss {loss}, gradient norm {norm}, on "
            f"{', '.join(origins)}; look at these rows or lower the learning rate",
            step=step,
            rows=origins,
        )

    def _to_blame(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items whose own loss is no number; all of them where each alone is fine."""
        import torch

        found: list[Item] = []
        with torch.no_grad():
            for item in items:
                loss, _ = self._built.task.loss(self._built.model, [item])
                if not math.isfinite(loss.item()):
                    found.append(item)
        return found or items


def is_out_of_memory(problem: Exception) -> bool:
    """Whether an error is that memory ran out, the device's or the process's."""
    import torch

    if isinstance(problem, MemoryError | torch.OutOfMemoryError):
        return True
    # What torch's allocator for the CPU raises is a plain RuntimeError.
    return "can't allocate memory" in str(problem)


def learning_rate_at(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """The rate of a step (from 1): up to the peak over the warm-up, then down towards 0."""
    if step <= warmup:
        return peak * step / warmup
    return peak * (steps - step + 1) / (steps - warmup + 1)
