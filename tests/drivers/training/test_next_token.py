from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.training.decoder import Decoder, open_decoder
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.next_token import NextToken, Targets, log_likelihoods
from llmos.drivers.training.task import Item

ROWS = [
    Targets((10, 11, 12, 13), 2),
    Targets((20, 21, 22, 23, 24, 25, 26), 6),
    Targets((30, 31), 1),
]
ITEMS = [Item(row.tokens, row.given, f"row {n}") for n, row in enumerate(ROWS, start=1)]


def opened(path: Path, **settings: Any) -> Decoder:
    return open_decoder(TrainJob(base=str(path), output="", **settings), "cpu")


@pytest.mark.parametrize("packing", [True, False])
def test_a_row_in_a_batch_has_the_likelihood_that_it_has_alone(
    tiny_model_path: Path, packing: bool
) -> None:
    import torch

    decoder = opened(tiny_model_path, packing=packing)
    plain = opened(tiny_model_path, packing=False).model
    expected: list[float] = []
    with torch.inference_mode():
        for row in ROWS:
            logs = plain(input_ids=torch.tensor([row.tokens])).logits.log_softmax(-1)[0]
            places = range(row.given, len(row.tokens))
            expected += [logs[place - 1, row.tokens[place]].item() for place in places]
        found = log_likelihoods(decoder.model, ROWS, decoder)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_packed_rows_have_the_loss_and_the_gradient_of_padded_ones(tiny_model_path: Path) -> None:
    import torch

    found: list[tuple[float, list[Any]]] = []
    for packing in (True, False):
        decoder = opened(tiny_model_path, packing=packing, method="full")
        loss, weight = NextToken(decoder).loss(decoder.model, ITEMS)
        assert weight == 4
        loss.backward()
        found.append((loss.item(), [p.grad for p in decoder.model.parameters()]))
    (packed, packed_grads), (padded, padded_grads) = found
    assert packed == pytest.approx(padded, rel=1e-5)
    for one, other in zip(packed_grads, padded_grads, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_evaluation_does_not_depend_on_the_batch_size(tiny_model_path: Path) -> None:
    decoder = opened(tiny_model_path)
    task = NextToken(decoder)
    scores = [task.evaluate(decoder.model, ITEMS, batch_size=size) for size in (1, 2, 3)]
    losses = [score.metrics["loss"] for score in scores]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert scores[0].metrics["tokens"] == 4
    assert [row["origin"] for row in scores[2].predictions] == ["row 1", "row 2", "row 3"]


def test_virtual_tokens_stand_before_rows_and_shift_no_target(tiny_model_path: Path) -> None:
    import torch

    decoder = opened(tiny_model_path, method="prompt_tuning", rank=3)
    assert not decoder.is_packed
    with torch.inference_mode():
        together = log_likelihoods(decoder.model, ROWS, decoder).tolist()
        alone = [log_likelihoods(decoder.model, [row], decoder) for row in ROWS]
    assert together == pytest.approx(torch.cat(alone).tolist(), rel=1e-5)
