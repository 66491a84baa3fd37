"""A decoder of the Llama kind, computed without transformers' modules.

Owns the order of operations of one packed pass (`torch_packed`) for the architectures in `SERVED`:
RMS norm, rotary positions, grouped-query attention, gated SiLU. What reads the same input is one
product: queries, keys and values, and the two halves of the gate. The weights are the model's own,
laid side by side once; its modules keep views of them.

Sources: Touvron et al. 2023 (arXiv 2302.13971); Shazeer 2020 (arXiv 2002.05202).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos.drivers.torch_adapters import TorchAdapters
from llmos.drivers.torch_linear import linear
from llmos.drivers.torch_packed import PackedStep, attend

if TYPE_CHECKING:
    import torch

SERVED = frozenset({"llama", "mistral", "qwen2", "qwen3"})


class _Linear(NamedTuple):
    """Linear layers of one input, side by side. `parts` are their names and columns."""

    weight: torch.Tensor  # (outputs, inputs)
    bias: torch.Tensor | None
    parts: Sequence[tuple[str, slice]]


class _Norm(NamedTuple):
    weight: torch.Tensor
    epsilon: float


class _Layer(NamedTuple):
    before_attention: _Norm
    attention_in: _Linear  # queries, keys, values
    head_norms: tuple[_Norm, _Norm] | None  # of queries and keys, where there are
    attention_out: _Linear
    before_mlp: _Norm
    gate_up: _Linear
    down: _Linear


def can_serve(settings: Any) -> bool:
    """Whether a model with these settings is of the Llama kind."""
    return settings.model_type in SERVED and settings.hidden_act == "silu"


class LlamaForward:
    """One packed pass over a model for which `can_serve` holds.

    Lays the model's weights side by side; the model computes what it did before.
    """

    def __init__(self, model: Any, adapters: TorchAdapters) -> None:
        settings = model.config
        self._adapters = adapters
        self._embeddings: torch.Tensor = model.model.embed_tokens.weight
        self._rotary: Any = model.model.rotary_emb
        self._layers = [_layer(model, index) for index in range(settings.num_hidden_layers)]
        self._last_norm = _norm(model.model.norm)
        self._head = _fused(model, "lm_head")
        self._heads: int = settings.num_attention_heads
        self._kv_heads: int = settings.num_key_value_heads
        self._dim: int = model.model.layers[0].self_attn.head_dim
        self._scaling: float = model.model.layers[0].self_attn.scaling

    def __call__(self, step: PackedStep) -> torch.Tensor:
        """Logits `(asked, vocabulary)` after the asked tokens; all tokens' KV is written."""
        import torch

        hidden = torch.nn.functional.embedding(step.tokens, self._embeddings)
        cosines, sines = self._rotary(hidden, step.positions[None])
        # For the halves of each head swapped: the first is turned the other way.
        sines = sines.clone()
        sines[..., : self._dim // 2].neg_()
        cosines, sines = cosines.transpose(0, 1), sines.transpose(0, 1)  # (tokens, 1, dim)
        for index, layer in enumerate(self._layers):
            normed = _normed(hidden, layer.before_attention)
            attended = self._attention(index, layer, normed, cosines, sines, step)
            hidden += self._linear(attended, layer.attention_out)
            normed = _normed(hidden, layer.before_mlp)
            hidden += self._mlp(layer, normed)
        return self._linear(_normed(hidden[step.asked], self._last_norm), self._head)

    def _attention(
        self,
        index: int,
        layer: _Layer,
        normed: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        step: PackedStep,
    ) -> torch.Tensor:
        import torch

        tokens, heads, both = len(normed), self._heads, self._heads + self._kv_heads
        mixed = self._linear(normed, layer.attention_in).view(tokens, -1, self._dim)
        turned, values = mixed[:, :both], mixed[:, both:]
        if layer.head_norms is not None:
            one, other = layer.head_norms
            turned = torch.cat(
                (_normed(turned[:, :heads], one), _normed(turned[:, heads:], other)), 1
            )
        turned = turned * cosines + torch.cat(turned.chunk(2, -1)[::-1], -1) * sines
        fresh = torch.stack((turned[:, heads:], values)).transpose(1, 2).unsqueeze(1)
        queries = turned[:, :heads].transpose(0, 1).unsqueeze(0)
        attended = attend(index, queries, fresh, step.parts, scaling=self._scaling)
        return attended.reshape(tokens, -1)

    def _mlp(self, layer: _Layer, normed: torch.Tensor) -> torch.Tensor:
        import torch

        gate, up = self._linear(normed, layer.gate_up).chunk(2, dim=1)
        return self._linear(torch.nn.functional.silu(gate) * up, layer.down)

    def _linear(self, rows: torch.Tensor, layer: _Linear) -> torch.Tensor:
        result = linear(rows, layer.weight, layer.bias)
        for path, columns in layer.parts:
            self._adapters.add_to(result[:, columns], rows, path)
        return result


def _normed(rows: torch.Tensor, norm: _Norm) -> torch.Tensor:
    import torch

    return torch.rms_norm(rows, norm.weight.shape, norm.weight, norm.epsilon)


def _norm(module: Any) -> _Norm:
    return _Norm(module.weight, module.variance_epsilon)


def _layer(model: Any, index: int) -> _Layer:
    path = f"model.layers.{index}"
    module = model.get_submodule(path)
    attention = module.self_attn
    has_head_norms = hasattr(attention, "q_norm")
    return _Layer(
        before_attention=_norm(module.input_layernorm),
        attention_in=_fused(model, *(f"{path}.self_attn.{name}_proj" for name in "qkv")),
        head_norms=(_norm(attention.q_norm), _norm(attention.k_norm)) if has_head_norms else None,
        attention_out=_fused(model, f"{path}.self_attn.o_proj"),
        before_mlp=_norm(module.post_attention_layernorm),
        gate_up=_fused(model, f"{path}.mlp.gate_proj", f"{path}.mlp.up_proj"),
        down=_fused(model, f"{path}.mlp.down_proj"),
    )


def _fused(model: Any, *paths: str) -> _Linear:
    """The named layers side by side; each keeps a view of its rows of the new weights."""
    import torch

    modules = [model.get_submodule(path) for path in paths]
    if len(modules) == 1:
        weight, bias = modules[0].weight, modules[0].bias
    else:
        weight = torch.cat([module.weight for module in modules])
        has_bias = modules[0].bias is not None
        bias = torch.cat([module.bias for module in modules]) if has_bias else None
    parts: list[tuple[str, slice]] = []
    start = 0
    for path, module in zip(paths, modules, strict=True):
        stop = start + len(module.weight)
        parts.append((path, slice(start, stop)))
        module.weight.data = weight.data[start:stop]
        start = stop
    return _Linear(weight.data, None if bias is None else bias.data, parts)
