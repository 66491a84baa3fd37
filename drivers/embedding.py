"""The embedding driver: a BERT encoder in torch, mean-pooled to unit vectors.

Owns one encoder's weights on one device. Texts are batched by length, so that padding is small.
Source: Reimers and Gurevych, Sentence-BERT (EMNLP 2019), section 3, for mean pooling.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos.drivers.contract import Allocation, DeviceError, EmbeddingInfo, ModelSpec
from llmos.drivers.torch_weights import quiet

if TYPE_CHECKING:
    import torch

# Rows of one forward pass: larger batches gain nothing on a CPU and cost memory.
BATCH_ROWS = 32
_DEFAULT_MAX_TOKENS = 256


class TorchEmbedding:
    """Satisfies `EmbeddingModel`, whose docstrings hold here. `spec.path` is the model's folder."""

    def __init__(self, spec: ModelSpec) -> None:
        """Open the model from local files only. Raises: DeviceError saying what is missing."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        if not (spec.path / "config.json").is_file():
            raise DeviceError(f"{spec.path} is no embedding model: it has no config.json")
        try:
            with quiet():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(
                    spec.path, local_files_only=True
                )
                model: Any = AutoModel.from_pretrained(
                    spec.path, local_files_only=True, dtype=torch.float32
                )
        except (OSError, ValueError, RuntimeError) as problem:
            raise DeviceError(f"the embedding model cannot be loaded: {problem}") from problem
        self._model: Any = model.to(spec.device).eval()
        self._torch = torch
        self._device = spec.device
        weights = list(self._model.parameters())
        self._weight_bytes = sum(one.numel() * one.element_size() for one in weights)
        self._info = EmbeddingInfo(
            name=spec.name,
            device=spec.device,
            dimensions=int(self._model.config.hidden_size),
            max_tokens=_max_tokens(spec.path),
            parameters=sum(one.numel() for one in weights),
        )
        # What the tokenizer file says about cutting and padding belongs to each call here.
        self._tokenizer.backend_tokenizer.no_truncation()
        self._tokenizer.backend_tokenizer.no_padding()

    @property
    def info(self) -> EmbeddingInfo:
        return self._info

    def count(self, text: str) -> int:
        return len(self._tokenizer.backend_tokenizer.encode(text).ids)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        for index, text in enumerate(texts):
            if not text.strip():
                raise DeviceError(f"text {index} is blank; there is nothing to embed")
        rows = [self._encode(text) for text in texts]
        by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        vectors: list[list[float]] = [[] for _ in rows]
        for start in range(0, len(rows), BATCH_ROWS):
            batch = by_length[start : start + BATCH_ROWS]
            for index, vector in zip(batch, self._forward([rows[i] for i in batch]), strict=True):
                vectors[index] = vector
        return vectors

    def allocations(self) -> list[Allocation]:
        return [Allocation("weights", self._weight_bytes)]

    def close(self) -> None:
        self._model = None

    def _encode(self, text: str) -> list[int]:
        """Token ids, cut to the window; the last one stays the end marker."""
        ids: list[int] = self._tokenizer.backend_tokenizer.encode(text).ids
        most = self._info.max_tokens
        return ids if len(ids) <= most else [*ids[: most - 1], ids[-1]]

    def _forward(self, rows: Sequence[list[int]]) -> list[list[float]]:
        torch = self._torch
        width = max(len(row) for row in rows)
        pad = self._tokenizer.pad_token_id or 0
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])  # (batch, tokens)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        ids, mask = ids.to(self._device), mask.to(self._device)
        try:
            with torch.inference_mode():
                hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
                pooled = self._pool(hidden, mask)
        except RuntimeError as problem:  # torch's out of memory among them
            raise DeviceError(f"the embedding model failed: {problem}") from problem
        result: list[list[float]] = pooled.cpu().tolist()
        return result

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The mean over real tokens, as unit vectors: (batch, tokens, dim) to (batch, dim)."""
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
        return self._torch.nn.functional.normalize(mean, dim=-1)


def _max_tokens(folder: Path) -> int:
    """The window that the model was trained for, where its folder says so."""
    settings = folder / "sentence_bert_config.json"
    if not settings.is_file():
        return _DEFAULT_MAX_TOKENS
    return int(json.loads(settings.read_text())["max_seq_length"])
