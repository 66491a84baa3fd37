"""One forward pass over the tokens of many sequences, packed without padding.

All tokens of a step are one row of a batch of one: every linear layer runs once over all of them,
whatever their sequences, and only attention takes them apart. The function here stands in for
transformers' own attention, so any decoder with full attention runs through it unchanged.

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
    """Attention of one layer, each part over its own KV, to which its new tokens are written.

    `query` is `(1, heads, tokens, dim)`, `key` and `value` `(1, kv_heads, tokens, dim)`, the parts
    one after the other; gives `(1, tokens, heads, dim)`. Raises: DeviceError for an architecture
    that asks for more than causal attention.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    asked = [name for name in _UNSERVED if options.get(name) is not None]
    if attention_mask is not None or asked:
        raise DeviceError(f"this architecture's attention is not served: {asked or 'own mask'}")
    layer: int = module.layer_idx
    sizes = [one.new_tokens for one in parts]
    fresh = torch.stack((key, value)).split(sizes, dim=3)
    attended: list[torch.Tensor] = []
    for one, queries, new in zip(parts, query.split(sizes, dim=2), fresh, strict=True):
        kv = one.layers[layer]
        kv.narrow(3, one.held_tokens, one.new_tokens).copy_(new)
        keys, values = kv.narrow(3, 0, one.held_tokens + one.new_tokens).unbind(0)
        attended.append(
            scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=one.mask,
                is_causal=one.mask is None and one.new_tokens > 1,
                scale=scaling,
                enable_gqa=True,
            )
        )
    return torch.cat(attended, dim=2).transpose(1, 2), None
