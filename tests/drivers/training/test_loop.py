from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.training.instruct import EncodedRow
from llmos.drivers.training.loop import (
    evaluate,
    learning_rate_at,
    planned_steps,
    summed_loss,
    train,
)
from llmos.syscalls.errors import SyscallError

# peft asks transformers for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ROWS = [
    EncodedRow((10, 11, 12, 13), 2, "row 1"),
    EncodedRow((20, 21, 22, 23, 24, 25, 26), 6, "row 2"),
    EncodedRow((30, 31), 1, "row 3"),
]


@pytest.fixture
def model(tiny_model_path: Path) -> Any:
    from llmos.drivers.training.lora import load_base

    model, _ = load_base(tiny_model_path, device="cpu", threads=1)
    return model


def test_the_loss_of_a_padded_batch_is_that_of_each_row_alone(model: Any) -> None:
    import torch

    expected = 0.0
    with torch.inference_mode():
        for row in ROWS:
            ids = torch.tensor([row.tokens])
            logprobs = model(input_ids=ids).logits.log_softmax(-1)[0]
            for place in range(row.prompt_tokens, len(row.tokens)):
                expected -= logprobs[place - 1, row.tokens[place]].item()
        summed, targets = summed_loss(model, ROWS)
    assert targets == 4
    assert summed.item() == pytest.approx(expected, rel=1e-5)


def test_evaluation_does_not_depend_on_the_batch_size(model: Any) -> None:
    scores = [evaluate(model, ROWS, batch_size=size) for size in (1, 2, 3)]
    assert {(score.rows, score.tokens) for score in scores} == {(3, 4)}
    assert [score.loss for score in scores] == pytest.approx([scores[0].loss] * 3, rel=1e-5)


def test_training_lowers_the_loss_and_changes_the_adapter_only(model: Any) -> None:
    from llmos.drivers.training.lora import add_adapter

    base = {name: weight.clone() for name, weight in model.named_parameters()}
    adapted = add_adapter(model, rank=4, seed=0)
    before = evaluate(adapted, ROWS, batch_size=3).loss
    steps = list(train(adapted, ROWS, steps=30, batch_size=2, learning_rate=1e-2, seed=0))
    assert [step.number for step in steps] == list(range(1, 31))
    assert evaluate(adapted, ROWS, batch_size=3).loss < before - 0.5
    with adapted.disable_adapter():
        assert evaluate(adapted, ROWS, batch_size=3).loss == pytest.approx(before, rel=1e-6)
    after = dict(adapted.get_base_model().named_parameters())
    for name, weight in base.items():
        stem, last = name.rsplit(".", 1)
        now = after.get(name, after.get(f"{stem}.base_layer.{last}"))
        assert now is not None
        assert now.equal(weight)


def test_the_same_seed_trains_the_same(tiny_model_path: Path) -> None:
    from llmos.drivers.training.lora import add_adapter, load_base

    losses: list[list[float]] = []
    for _ in range(2):
        model, _ = load_base(tiny_model_path, device="cpu", threads=1)
        model = add_adapter(model, rank=4, seed=3)
        run = train(model, ROWS, steps=5, batch_size=2, learning_rate=1e-2, seed=3)
        losses.append([step.loss for step in run])
    assert losses[0] == losses[1]


def test_a_loss_that_is_no_number_stops_and_names_step_and_rows(model: Any) -> None:
    import torch

    from llmos.drivers.training.lora import add_adapter

    with torch.no_grad():
        model.get_input_embeddings().weight[30] = math.nan  # only row 3 holds this token
    adapted = add_adapter(model, rank=4, seed=0)
    with pytest.raises(SyscallError) as stopped:
        list(train(adapted, ROWS, steps=3, batch_size=1, learning_rate=1e-3, seed=0))
    assert stopped.value.code == "failed"
    assert stopped.value.fields["rows"] == ["row 3"]
    assert f"step {stopped.value.fields['step']}" in stopped.value.message
    assert all(weight.isfinite().all() for weight in adapted.parameters() if weight.requires_grad)
    with pytest.raises(SyscallError, match="not a number"):
        evaluate(adapted, ROWS, batch_size=1)


def test_the_learning_rate_climbs_to_its_peak_and_falls_towards_zero() -> None:
    rates = [learning_rate_at(step, steps=100, peak=1.0) for step in range(1, 101)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(rates) == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.02
    assert learning_rate_at(1, steps=1, peak=1.0) == 1.0


def test_steps_are_the_epochs_batches_rounded_up_and_capped() -> None:
    assert planned_steps(10, batch_size=4, epochs=2, max_steps=None) == 6
    assert planned_steps(10, batch_size=4, epochs=0.5, max_steps=None) == 2
    assert planned_steps(10, batch_size=4, epochs=2, max_steps=5) == 5
    assert planned_steps(10, batch_size=4, epochs=2, max_steps=50) == 6
