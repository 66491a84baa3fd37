"""A cross-encoder on torch: reads a query and a text together and says how well they fit.

Dearer than comparing vectors, because nothing of a text can be computed before the query is known,
and better, because every word of one is seen beside every word of the other. For the best few of a
search. Owns the weights of one folder with a sequence classifier of one label.
Source: Nogueira and Cho, "Passage Re-ranking with BERT", 2019 (arXiv 1901.04085).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos.drivers.contract import Allocation, CrossEncoderInfo, DeviceError, ModelSpec
from llmos.drivers.length_batches import BATCH_TOKENS, length_batches
from llmos.drivers.torch_device import use_device
from llmos.drivers.torch_errors import torch_errors
from llmos.drivers.torch_weights import load_tokenizer, quiet

if TYPE_CHECKING:
    import torch

# Where texts are cut before they are split into tokens, in characters for each token of the window.
_TOKEN_CHARS = 64


class TorchCrossEncoder:
    """An open cross-encoder. Satisfies `CrossEncoder`, whose docstrings hold here.

    `spec.path` is the model's folder. Raises: DeviceError when it is missing or damaged, or is no
    classifier of one label.
    """

    def __init__(self, spec: ModelSpec) -> None:
        dtype = use_device(spec)
        self._device = spec.device
        self._batch_tokens = BATCH_TOKENS[spec.device.partition(":")[0]]
        self._model: Any = _load(spec.path, dtype, spec.device)
        self._tokenizer: Any = load_tokenizer(spec.path)
        positions: int = self._model.config.max_position_embeddings
        # Two positions fewer where they start after the padding token's id, as RoBERTa's do.
        longest = positions - 2 if "roberta" in str(self._model.config.model_type) else positions
        self._info = CrossEncoderInfo(
            name=spec.name,
            device=spec.device,
            max_tokens=min(longest, self._tokenizer.model_max_length),
            parameters=self._model.num_parameters(),
        )

    @property
    def info(self) -> CrossEncoderInfo:
        return self._info

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        if self._model is None:
            raise DeviceError(f"{self._info.name} is closed", is_fatal=True)
        if not texts:
            return []
        most = self._info.max_tokens
        pairs: Any = self._tokenizer(
            [query[: most * _TOKEN_CHARS]] * len(texts),
            [text[: most * _TOKEN_CHARS] for text in texts],
            truncation="longest_first",
            max_length=most,
        )
        lengths = [len(ids) for ids in pairs["input_ids"]]
        scores = [0.0] * len(texts)
        for batch in length_batches(lengths, batch_tokens=self._batch_tokens):
            found = self._forward({key: [rows[n] for n in batch] for key, rows in pairs.items()})
            for place, score in zip(batch, found, strict=True):
                scores[place] = score
        return scores

    def allocations(self) -> list[Allocation]:
        if self._model is None:
            return []
        return [Allocation("weights", sum(one.nbytes for one in self._model.parameters()))]

    def close(self) -> None:
        self._model = None

    def _forward(self, rows: dict[str, list[list[int]]]) -> list[float]:
        """One score from 0 to 1 a row."""
        import torch

        with torch_errors(self._device, "score"), torch.inference_mode():
            padded = self._tokenizer.pad(rows, return_tensors="pt").to(self._device)
            logits: torch.Tensor = self._model(**padded).logits  # (rows, 1)
            scores = torch.sigmoid(logits.float()[:, 0]).cpu()
        if not scores.isfinite().all():
            raise DeviceError("a score is not finite; the model's file is damaged")
        return scores.tolist()


def _load(folder: Path, dtype: torch.dtype, device: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.num_labels != 1:
            raise DeviceError(
                f"{folder.name} has {config.num_labels} labels; a cross-encoder that ranks has one"
            )
        with quiet():
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=dtype, local_files_only=True
            )
        return model.to(device).eval().requires_grad_(False)
    except DeviceError:
        raise
    except torch.OutOfMemoryError as problem:
        raise DeviceError(f"the weights of {folder.name} do not fit on {device}") from problem
    except Exception as problem:
        raise DeviceError(f"transformers cannot load {folder}: {problem}") from problem
