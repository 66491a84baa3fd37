from __future__ import annotations

import torch

from llmos.drivers.training.few_rows import contrast, thinned
from llmos.drivers.training.task import Item


def item(*tokens: int) -> Item:
    return Item(tokens, 0, "row")


def test_a_share_of_the_tokens_is_left_out_in_order_and_the_ends_stay() -> None:
    torch.manual_seed(0)
    whole = item(*range(1000))
    (found,) = thinned([whole], 0.3)
    assert found.tokens[0] == 0
    assert found.tokens[-1] == 999
    assert list(found.tokens) == sorted(found.tokens)
    assert 600 < len(found.tokens) < 800
    assert found.origin == whole.origin


def test_the_same_random_state_leaves_out_the_same_tokens() -> None:
    rows = [item(*range(50)), item(*range(7))]
    torch.manual_seed(3)
    first = thinned(rows, 0.5)
    torch.manual_seed(3)
    assert thinned(rows, 0.5) == first


def test_rows_near_their_class_cost_less_than_rows_near_another() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 2.0], [0.1, 1.9]])
    together = contrast(vectors, torch.tensor([0, 0, 1, 1]))
    apart = contrast(vectors, torch.tensor([0, 1, 0, 1]))
    assert 0 <= together.item() < 0.1 < apart.item()


def test_rows_without_a_partner_add_nothing_and_still_give_a_gradient() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    alone = contrast(vectors, torch.tensor([0, 1]))
    assert alone.item() == 0
    alone.backward()
    assert vectors.grad is not None
    assert not vectors.grad.isnan().any()
