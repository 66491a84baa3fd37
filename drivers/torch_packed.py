"""One forward pass over the tokens of many sequences, packed without padding.

All tokens of a step are one row of a batch of one: every linear layer runs once over all of them,
whatever their sequences, and only attention takes them apart. Decoders of the Llama kind have a
pass of their own (`torch_llama`). For the others the function here stands in for transformers' own
attention, so any decoder with full attention runs through it unchanged.

Idea: packed variable-length batches as in vLLM (Kwon et al. 2023, arXiv 2309.06180); the KV here
is contiguous per sequence, which on a CPU reads faster than pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos.drivers.contract import DeviceError

if TYPE_CHECKING:
    import torch

ATTENTION = "llmos_packed"
# What some architectures ask of attention and this one does not do.
_UNSERVED = ("softcap", "s_aux", "sinks")


class Part(NamedTuple):
    """One sequence's share of a packed batch.

    `layers` is its KV per layer, `(2, 1, kv_heads, capacity, dim)`, with room for the new tokens
    after `held_tokens`. `mask` is added to the scores, `(new, held + new)`; None where causality
    needs none or torch's own will do.
    """

    new_tokens: int
    held_tokens: int
    layers: Sequence[torch.Tensor]
    mask: torch.Tensor | None


class PackedStep(NamedTuple):
    """The input of one pass. All tensors are on the model's device."""

    tokens: torch.Tensor  # (tokens,)
    positions: torch.Tensor  # (tokens,)
    asked: torch.Tensor  # (asked,): the rows after which logits are wanted
    parts: Sequence[Part]


def part(
    new_tokens: int,
    held_tokens: int,
    layers: Sequence[torch.Tensor],
) -> Part:
    """A part with its mask; one token sees all, and a text's beginning has torch's own mask."""
    import torch

    mask = None
    if new_tokens > 1 and held_tokens:
        shape = (new_tokens, held_tokens + new_tokens)
        like = layers[0]
        mask = torch.full(shape, float("-inf"), dtype=like.dtype, device=like.device)
        mask.triu_(held_tokens + 1)
    return Part(new_tokens, held_tokens, layers, mask)


def install() -> None:
    """Make the attention known to transformers under the name `ATTENTION`."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, packed_attention)


def attend(
    layer: int,
    queries: torch.Tensor,
    fresh: torch.Tensor,
    parts: Sequence[Part],
    *,
    scaling: float,
) -> torch.Tensor:
    """Attention of one layer, each part over its own KV, to which its new tokens are written.

    `queries` are `(1, heads, tokens, dim)` and `fresh`, keys and values,
    `(2, 1, kv_heads, tokens, dim)`, the parts one after the other; gives `(1, tokens, heads, dim)`.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    sizes = [one.new_tokens for one in parts]
    attended: list[torch.Tensor] = []
    for one, asking, new in zip(
        parts, queries.split(sizes, dim=2), fresh.split(sizes, dim=3), strict=True
    ):
        kv = one.layers[layer]
        kv.narrow(3, one.held_tokens, one.new_tokens).copy_(new)
        keys, values = kv.narrow(3, 0, one.held_tokens + one.new_tokens).unbind(0)
        found = scaled_dot_product_attention(
            asking,
            keys,
            values,
            attn_mask=one.mask,
            is_causal=one.mask is None and one.new_tokens > 1,
            scale=scaling,
            enable_gqa=True,
        )
        attended.append(found.transpose(1, 2))
    return torch.cat(attended, dim=1)


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    parts: Sequence[Part],
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """`attend` in the form that transformers calls. Raises: DeviceError for an architecture that
    asks for more than causal attention.
    """
    import torch

    asked = [name for name in _UNSERVED if options.get(name) is not None]
    if attention_mask is not None or asked:
        raise DeviceError(f"this architecture's attention is not served: {asked or 'own mask'}")
    fresh = torch.stack((key, value))
    return attend(module.layer_idx, query, fresh, parts, scaling=scaling), None


class TransformersForward:
    """One packed pass through transformers' own modules, loaded with the attention `ATTENTION`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, step: PackedStep) -> torch.Tensor:
        """Logits `(asked, vocabulary)` after the asked tokens; all tokens' KV is written."""
        output = self._model(
            input_ids=step.tokens[None],
            position_ids=step.positions[None],
            use_cache=False,
            logits_to_keep=step.asked,
            parts=step.parts,
        )
        logits: torch.Tensor = output.logits[0]
        return logits
