"""An embedding model on torch: an encoder, a pooling, unit length.

Owns the weights of one sentence-transformers folder (all-MiniLM-L6-v2 by default), read from local
files only and computed with transformers alone; what the folder's files ask for is read by
`sentence_folder.py`. Texts are batched by length, so that little is computed on padding. Refuses to
know indexes and what is near to what.
Source: Reimers and Gurevych 2019 (arXiv 1908.10084).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from llmos.drivers.contract import Allocation, DeviceError, EmbeddingInfo, ModelSpec
from llmos.drivers.length_batches import BATCH_TOKENS, length_batches
from llmos.drivers.sentence_folder import (
    Pooling,
    SentenceFolder,
    activation,
    dimensions,
    identity,
    read_sentence_folder,
)
from llmos.drivers.torch_device import use_device
from llmos.drivers.torch_errors import torch_errors
from llmos.drivers.torch_weights import load_tokenizer, quiet

if TYPE_CHECKING:
    import torch

# Where a text is cut before it is split into tokens, in characters for each token of the window:
# more than any language's words have, and little enough that no text is too long to read.
_TOKEN_CHARS = 64


class TorchEmbedding:
    """An open embedding model. Satisfies `EmbeddingModel`, whose docstrings hold here.

    `spec.path` is the model's folder. Raises: DeviceError when it is missing or damaged, or makes
    its vectors in a way that is not served.
    """

    def __init__(self, spec: ModelSpec) -> None:
        dtype = use_device(spec)
        self._folder: SentenceFolder = read_sentence_folder(spec.path)
        self._device = spec.device
        self._batch_tokens = BATCH_TOKENS[spec.device.partition(":")[0]]
        encoder = self._folder.encoder
        self._model: Any = _load(encoder, dtype, spec.device)
        self._layers: list[Any] = [
            _dense(layer, dtype, spec.device) for layer in self._folder.layers
        ]
        tokenizer = load_tokenizer(encoder)
        self._tokenizer: Any = tokenizer.backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._padding: int = tokenizer.pad_token_id or 0
        trained = self._folder.max_tokens
        longest = longest_text(self._model.config)
        self._info = EmbeddingInfo(
            name=spec.name,
            device=spec.device,
            dimensions=dimensions(spec.path),
            max_tokens=min(trained or longest, longest),
            parameters=sum(weights.numel() for weights in self._weights()),
            batch_tokens=self._batch_tokens,
            identity=identity(spec.path),
            query_prefix=_given(spec.query_prefix, self._folder.query_prefix),
            document_prefix=_given(spec.document_prefix, self._folder.document_prefix),
        )

    @property
    def info(self) -> EmbeddingInfo:
        return self._info

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(self._written(text)).ids)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        if self._model is None:
            raise DeviceError(f"{self._info.name} is closed", is_fatal=True)
        for place, text in enumerate(texts):
            if not text.strip():
                raise DeviceError(
                    f"text {place} of {len(texts)} is empty: there is no meaning to embed"
                )
        rows = self._rows(texts)
        vectors: list[list[float]] = [[] for _ in texts]
        lengths = [len(row) for row in rows]
        for batch in length_batches(lengths, batch_tokens=self._batch_tokens):
            found = self._forward([rows[place] for place in batch])
            for place, vector in zip(batch, found, strict=True):
                vectors[place] = vector
        return vectors

    def allocations(self) -> list[Allocation]:
        if self._model is None:
            return []
        return [Allocation("weights", sum(weights.nbytes for weights in self._weights()))]

    def close(self) -> None:
        self._model, self._layers = None, []

    def _weights(self) -> Iterator[torch.Tensor]:
        for module in (self._model, *self._layers):
            yield from module.parameters()

    def _written(self, text: str) -> str:
        whole = text.encode("utf-8", errors="replace").decode()
        return whole.lower() if self._folder.is_lower_case else whole

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts within the window, with those that begin and end a text."""
        most = self._info.max_tokens
        longest = most * _TOKEN_CHARS
        found = self._tokenizer.encode_batch([self._written(text[:longest]) for text in texts])
        rows: list[list[int]] = [encoding.ids for encoding in found]
        return [ids if len(ids) <= most else [*ids[: most - 1], ids[-1]] for ids in rows]

    def _forward(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        import torch

        with torch_errors(self._device, "embed"), torch.inference_mode():
            vectors = self._pooled(rows).float().cpu()
        if not vectors.isfinite().all():
            raise DeviceError("the embedding is not finite; the model's file is damaged")
        return vectors.tolist()

    def _pooled(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Unit vectors `(rows, dimensions)`."""
        import torch

        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self._padding)  # (rows, tokens)
        mask = torch.zeros((len(rows), width), dtype=torch.long)  # (rows, tokens)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        mask = mask.to(self._device)
        output = self._model(input_ids=ids.to(self._device), attention_mask=mask)
        states: torch.Tensor = output.last_hidden_state  # (rows, tokens, width)
        pooled = torch.cat([_pool(states, mask, kind) for kind in self._folder.poolings], dim=1)
        for layer in self._layers:
            pooled = layer(pooled)
        return torch.nn.functional.normalize(pooled, dim=1)


def _pool(states: torch.Tensor, mask: torch.Tensor, kind: Pooling) -> torch.Tensor:
    """One vector a row `(rows, width)` of the states of its tokens; `mask` is 1 for tokens."""
    import torch

    match kind:
        case "cls":
            return states[:, 0]
        case "last":
            rows = torch.arange(len(states), device=states.device)
            return states[rows, mask.sum(dim=1) - 1]
        case "max":
            return states.masked_fill(mask.unsqueeze(2) == 0, float("-inf")).amax(dim=1)
        case "mean" | "mean_sqrt_len":
            summed = (states * mask.unsqueeze(2)).sum(dim=1)
            counts = mask.sum(dim=1, keepdim=True)
            return summed / (counts if kind == "mean" else counts.sqrt())
        case "weighted_mean":  # the later a token, the more it has seen, and the more it counts
            weights = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)
            summed = (states * weights.unsqueeze(2)).sum(dim=1)
            return summed / weights.sum(dim=1, keepdim=True)
        case _:
            assert_never(kind)


# --- opening --------------------------------------------------------------------------------------


def _load(folder: Path, dtype: torch.dtype, device: str) -> Any:
    import torch
    from transformers import AutoModel

    try:
        with quiet():
            model: Any = AutoModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
        return model.to(device).eval().requires_grad_(False)
    except torch.OutOfMemoryError as problem:
        raise DeviceError(f"the weights of {folder.name} do not fit on {device}") from problem
    except Exception as problem:
        raise DeviceError(f"transformers cannot load {folder}: {problem}") from problem


def _given(set_by_hand: str | None, by_files: str) -> str:
    return by_files if set_by_hand is None else set_by_hand


def _dense(folder: Path, dtype: torch.dtype, device: str) -> Any:
    """A dense layer behind the pooling."""
    import torch
    from safetensors.torch import load_file

    act: Any = getattr(torch.nn, activation(folder), None)
    try:
        weights = load_file(folder / "model.safetensors")
        weight, bias = weights["linear.weight"], weights.get("linear.bias")
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.weight.data.copy_(weight)
        if bias is not None:
            linear.bias.data.copy_(bias)
        layer = torch.nn.Sequential(linear, act())
    except Exception as problem:
        raise DeviceError(f"cannot load the dense layer {folder}: {problem}") from problem
    return layer.to(device=device, dtype=dtype).eval().requires_grad_(False)


def longest_text(config: Any) -> int:
    """Most tokens that an encoder has positions for."""
    positions: int = config.max_position_embeddings
    # RoBERTa's positions start after the padding token's id.
    offset = config.pad_token_id + 1 if "roberta" in str(config.model_type) else 0
    return positions - offset
