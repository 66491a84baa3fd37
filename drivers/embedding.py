"""An embedding model on torch: a BERT encoder, mean pooling, unit length.

Owns the weights of one sentence-transformers folder (all-MiniLM-L6-v2 by default), read from local
files only and computed with transformers alone. Texts are batched by length, so that little is
computed on padding. Refuses to know indexes and what is near to what.
Source: Reimers and Gurevych 2019 (arXiv 1908.10084).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos.drivers.contract import Allocation, DeviceError, EmbeddingInfo, ModelSpec
from llmos.drivers.torch_device import use_device
from llmos.drivers.torch_weights import load_tokenizer, quiet

if TYPE_CHECKING:
    import torch

# Most tokens of one forward pass, padding included: what fits a CPU's caches, and fills a GPU.
_BATCH_TOKENS = {"cpu": 2_048, "cuda": 65_536}


class TorchEmbedding:
    """An open embedding model. Satisfies `EmbeddingModel`, whose docstrings hold here.

    `spec.path` is the model's folder. Raises: DeviceError when it is missing, damaged, or pools in
    another way than by the mean.
    """

    def __init__(self, spec: ModelSpec) -> None:
        dtype = use_device(spec)
        folder = spec.path
        self._device = spec.device
        self._batch_tokens = _BATCH_TOKENS[spec.device.partition(":")[0]]
        _check_pooling(folder)
        self._model: Any = _load(folder, dtype, spec.device)
        tokenizer = load_tokenizer(folder)
        self._tokenizer: Any = tokenizer.backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._padding: int = tokenizer.pad_token_id or 0
        self._info = EmbeddingInfo(
            name=spec.name,
            device=spec.device,
            dimensions=self._model.config.hidden_size,
            max_tokens=_window(folder, self._model.config),
            parameters=self._model.num_parameters(),
        )

    @property
    def info(self) -> EmbeddingInfo:
        return self._info

    def count(self, text: str) -> int:
        return len(self._ids(text))

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        if self._model is None:
            raise DeviceError(f"{self._info.name} is closed", is_fatal=True)
        for place, text in enumerate(texts):
            if not text.strip():
                raise DeviceError(
                    f"text {place} of {len(texts)} is empty: there is no meaning to embed"
                )
        rows = [self._cut(self._ids(text)) for text in texts]
        vectors: list[list[float]] = [[] for _ in texts]
        for batch in self._batches(rows):
            found = self._forward([rows[place] for place in batch])
            for place, vector in zip(batch, found, strict=True):
                vectors[place] = vector
        return vectors

    def allocations(self) -> list[Allocation]:
        if self._model is None:
            return []
        return [Allocation("weights", sum(one.nbytes for one in self._model.parameters()))]

    def close(self) -> None:
        self._model = None

    def _ids(self, text: str) -> list[int]:
        """Token ids with those that begin and end a text."""
        whole = text.encode("utf-8", errors="replace").decode()
        ids: list[int] = self._tokenizer.encode(whole).ids
        return ids

    def _cut(self, ids: list[int]) -> list[int]:
        """Ids within the window, the closing one kept."""
        most = self._info.max_tokens
        return ids if len(ids) <= most else [*ids[: most - 1], ids[-1]]

    def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Places of rows, those of like length together."""
        batch: list[int] = []
        for place in sorted(range(len(rows)), key=lambda place: len(rows[place])):
            if batch and (len(batch) + 1) * len(rows[place]) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    def _forward(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        import torch

        try:
            with torch.inference_mode():
                vectors = self._pooled(rows).float().cpu()
        except torch.OutOfMemoryError as problem:
            torch.cuda.empty_cache()
            raise DeviceError(f"{self._device} is out of memory: {problem}") from problem
        except Exception as problem:
            is_fatal = self._device != "cpu"
            raise DeviceError(f"torch failed to embed: {problem}", is_fatal=is_fatal) from problem
        if not vectors.isfinite().all():
            raise DeviceError("the embedding is not finite; the model's file is damaged")
        return vectors.tolist()

    def _pooled(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Unit vectors `(rows, dimensions)`: the mean over each row's tokens."""
        import torch

        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self._padding)  # (rows, tokens)
        mask = torch.zeros((len(rows), width), dtype=torch.long)  # (rows, tokens)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        mask = mask.to(self._device)
        output = self._model(input_ids=ids.to(self._device), attention_mask=mask)
        states: torch.Tensor = output.last_hidden_state  # (rows, tokens, dimensions)
        summed = (states * mask.unsqueeze(2)).sum(dim=1)
        means = summed / mask.sum(dim=1, keepdim=True)
        return torch.nn.functional.normalize(means, dim=1)


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


def _check_pooling(folder: Path) -> None:
    """Raises: DeviceError when the folder asks for another pooling than the mean."""
    settings = _settings(folder / "1_Pooling" / "config.json")
    others = [
        name
        for name, is_on in settings.items()
        if name.startswith("pooling_mode_") and is_on is True and name != "pooling_mode_mean_tokens"
    ]
    if others:
        raise DeviceError(f"{folder.name} pools by {', '.join(others)}; only the mean is served")


def _window(folder: Path, config: Any) -> int:
    """Most tokens of a text: what the model was trained for, where it says so."""
    trained = _settings(folder / "sentence_bert_config.json").get("max_seq_length")
    return min(trained or config.max_position_embeddings, config.max_position_embeddings)


def _settings(path: Path) -> dict[str, Any]:
    """A settings file of sentence-transformers; nothing when there is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        raise DeviceError(f"cannot read {path}: {problem}") from problem
    return found
