from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.training.decoder import open_decoder
from llmos.drivers.training.instruct import built
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.loop import Run, learning_rate_at
from llmos.drivers.training.next_token import NextToken
from llmos.drivers.training.task import Built, Item
from llmos.syscalls.errors import SyscallError

ITEMS = [
    Item((10, 11, 12, 13), 2, "row 1"),
    Item((20, 21, 22, 23, 24, 25, 26), 6, "row 2"),
    Item((30, 31), 1, "row 3"),
    Item((40, 41, 42), 1, "row 4"),
]


def ready(path: Path, **settings: Any) -> tuple[Built, TrainJob]:
    given = {"epochs": 50, "learning_rate": 1e-2, "rank": 4, "batch_size": 2, **settings}
    job = TrainJob(base=str(path), output="", **given)
    decoder = open_decoder(job, "cpu")
    return built(decoder, NextToken(decoder), job), job


def run_of(path: Path, **settings: Any) -> Run:
    made, job = ready(path, **settings)
    return Run(made, ITEMS, job, device="cpu")


def loss_of(made: Built) -> float:
    return made.task.evaluate(made.model, ITEMS, batch_size=4).metrics["loss"]


def test_training_lowers_the_loss_and_changes_the_adapter_only(tiny_model_path: Path) -> None:
    made, job = ready(tiny_model_path)
    base = {n: p.clone() for n, p in made.model.named_parameters() if not p.requires_grad}
    run = Run(made, ITEMS, job, device="cpu")
    before = loss_of(made)
    steps = [run.take_step() for _ in range(30)]
    assert [step.number for step in steps] == list(range(1, 31))
    assert loss_of(made) < before - 0.5
    with made.model.disable_adapter():
        assert loss_of(made) == pytest.approx(before, rel=1e-6)
    now = dict(made.model.named_parameters())
    assert base and all(now[name].equal(weight) for name, weight in base.items())


def test_the_same_seed_trains_the_same_and_another_does_not(tiny_model_path: Path) -> None:
    def losses(seed: int) -> list[float]:
        run = run_of(tiny_model_path, seed=seed, dropout=0.1)
        return [run.take_step().loss for _ in range(5)]

    first, second, other = losses(3), losses(3), losses(4)
    assert first == second != other


@pytest.mark.parametrize("packing", [True, False])
def test_the_size_of_a_micro_batch_does_not_change_the_step(
    tiny_model_path: Path, packing: bool
) -> None:
    whole, cut = (
        run_of(tiny_model_path, packing=packing, batch_size=4, micro_batch=size) for size in (4, 1)
    )
    for _ in range(3):
        assert whole.take_step().loss == pytest.approx(cut.take_step().loss, rel=1e-5)
    for name, weight in whole.weights.items():
        assert (weight - cut.weights[name]).abs().max().item() < 1e-3


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_state_put_back_goes_on_to_the_same_last_bit(tiny_model_path: Path, method: str) -> None:
    undisturbed = run_of(tiny_model_path, method=method, dropout=0.1)
    for _ in range(4):
        undisturbed.take_step()
    kept = {name: tensor.clone() for name, tensor in undisturbed.state().items()}
    losses = [undisturbed.take_step().loss for _ in range(4)]
    resumed = run_of(tiny_model_path, method=method, dropout=0.1)
    resumed.restore(kept)
    assert resumed.step == 4
    assert [resumed.take_step().loss for _ in range(4)] == losses
    for name, weight in undisturbed.weights.items():
        assert weight.equal(resumed.weights[name])


class Failing:
    """A task whose loss runs out of memory for more than `most` items at a time."""

    metric = "loss"
    is_higher_better = False

    def __init__(self, task: Any, most: int, problem: Exception) -> None:
        self._task = task
        self._most = most
        self._problem = problem
        self.sizes: list[int] = []

    def loss(self, model: Any, items: Any, /) -> Any:
        self.sizes.append(len(items))
        if len(items) > self._most:
            raise self._problem
        return self._task.loss(model, items)

    def encode(self, rows: Any, /) -> Any:
        return self._task.encode(rows)

    def evaluate(self, model: Any, items: Any, /, *, batch_size: int) -> Any:
        return self._task.evaluate(model, items, batch_size=batch_size)


def out_of_memory() -> list[Exception]:
    import torch

    return [
        MemoryError(),
        torch.OutOfMemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ]


@pytest.mark.parametrize("kind", range(3))
def test_where_memory_runs_out_fewer_rows_at_a_time_give_the_same_step(
    tiny_model_path: Path, kind: int
) -> None:
    fine = run_of(tiny_model_path, batch_size=4, dropout=0.1)
    made, job = ready(tiny_model_path, batch_size=4, dropout=0.1)
    failing = Failing(made.task, 1, out_of_memory()[kind])
    short = Run(made._replace(task=failing), ITEMS, job, device="cpu")
    assert short.take_step().tokens == fine.take_step().tokens
    assert short.micro_batch == 1
    assert failing.sizes == [4, 2, 1, 1, 1, 1]
    short.take_step()
    assert failing.sizes[6:] == [1, 1, 1, 1]  # for good


def test_a_row_that_does_not_fit_alone_is_named(tiny_model_path: Path) -> None:
    made, job = ready(tiny_model_path, batch_size=4)
    failing = Failing(made.task, 0, MemoryError())
    with pytest.raises(SyscallError, match=r"a single row of 7 tokens \(row 2\)") as failed:
        Run(made._replace(task=failing), ITEMS, job, device="cpu").take_step()
    assert failed.value.code == "failed"


def test_another_error_of_torch_is_not_taken_for_memory(tiny_model_path: Path) -> None:
    made, job = ready(tiny_model_path)
    failing = Failing(made.task, 0, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        Run(made._replace(task=failing), ITEMS, job, device="cpu").take_step()


def test_a_loss_that_is_no_number_stops_and_names_step_and_row(tiny_model_path: Path) -> None:
    import torch

    made, job = ready(tiny_model_path, batch_size=4)
    with torch.no_grad():
        made.model.get_input_embeddings().weight[30] = math.nan  # only row 3 holds this token
    run = Run(made, ITEMS, job, device="cpu")
    with pytest.raises(SyscallError) as stopped:
        run.take_step()
    assert stopped.value.code == "failed"
    assert stopped.value.fields == {"step": 1, "rows": ["row 3"]}
    assert all(weight.isfinite().all() for weight in run.weights.values())
    with pytest.raises(SyscallError, match="not a number"):
        loss_of(made)


def test_the_learning_rate_climbs_to_its_peak_and_falls_towards_zero() -> None:
    rates = [learning_rate_at(step, steps=100, warmup=5, peak=1.0) for step in range(1, 101)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(rates) == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.02
    assert learning_rate_at(1, steps=1, warmup=1, peak=1.0) == 1.0


def test_lower_layers_learn_more_slowly_where_the_rate_decays(tiny_model_path: Path) -> None:
    settings = {"method": "full", "weight_decay": 0.1, "layer_decay": 0.5}
    run = run_of(tiny_model_path, **settings)
    start = {name: weight.detach().clone() for name, weight in run.weights.items()}
    run.take_step()
    moved = {name: (w - start[name]).abs().max().item() for name, w in run.weights.items()}
    assert moved["model.layers.0.mlp.up_proj.weight"] < moved["model.layers.1.mlp.up_proj.weight"]
