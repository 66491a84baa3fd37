"""The objective `embed`: texts that belong together come near each other, others go apart.

Owns the loss (each text should find its own partner among all partners of the batch and the rows'
explicit negatives) and the written model, which is a sentence-transformers folder like its base and
opens as an embedding model. Refuses to know steps. A batch that is cut into micro-batches has fewer
wrong partners to tell apart: a larger micro-batch is a harder, better lesson.
Source: van den Oord et al. 2018 (arXiv 1807.03748); Henderson et al. 2017 (arXiv 1705.00652).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos.drivers import encoder_net
from llmos.drivers.rows.kinds import PairRow
from llmos.drivers.sentence_folder import read_sentence_folder
from llmos.drivers.task_folder import TaskHead, write_settings
from llmos.drivers.torch_weights import quiet
from llmos.drivers.training.encoder import Encoder, merged, open_encoder, rate
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.objectives import Rows
from llmos.drivers.training.task import Built, Encoded, Item, Measured
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonValue

if TYPE_CHECKING:
    import torch

SCALE = 20.0  # of cosines: how much nearer the partner must be than others


class Partner(NamedTuple):
    """Token ids of the text that belongs beside an item's, and of one that does not."""

    positive: tuple[int, ...]
    negative: tuple[int, ...] | None


class ContrastTask:
    """Trains an encoder's vectors on pairs. Satisfies `Task`."""

    metric = "mrr"
    is_higher_better = True

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def encode(self, rows: Sequence[PairRow], /) -> Encoded:
        text = self._encoder.text
        read = text.texts([row.text for row in rows])
        positives = text.texts([row.positive for row in rows])
        negatives = iter(text.texts([row.negative for row in rows if row.negative is not None]))
        items: list[Item] = []
        truncated: list[str] = []
        for row, one, positive in zip(rows, read, positives, strict=True):
            negative = None if row.negative is None else next(negatives)
            if one.is_cut or positive.is_cut or (negative is not None and negative.is_cut):
                truncated.append(row.origin)
            partner = Partner(positive.tokens, None if negative is None else negative.tokens)
            items.append(Item(one.tokens, partner, row.origin))
        return Encoded(tuple(items), truncated=tuple(truncated))

    def loss(self, model: Any, items: Sequence[Item], /) -> tuple[torch.Tensor, float]:
        import torch

        cosines, truth = self._cosines(model, items)
        summed = torch.nn.functional.cross_entropy(SCALE * cosines, truth, reduction="sum")
        return summed, float(len(items))

    def evaluate(self, model: Any, items: Sequence[Item], /, *, batch_size: int) -> Measured:
        """How soon a text finds its partner among all items' partners and negatives."""
        import torch

        model.eval()
        with torch.inference_mode():
            texts = self._all_vectors(model, [item.tokens for item in items], batch_size)
            keys = _distinct(items)
            found = self._all_vectors(model, list(keys), batch_size)
            cosines = texts @ found.T  # (items, keys)
            truth = torch.tensor([keys[item.payload.positive] for item in items])
            loss = torch.nn.functional.cross_entropy(SCALE * cosines, truth).item()
            own = cosines.gather(1, truth[:, None])
            ranks = 1 + (cosines > own).sum(dim=1)
        if not math.isfinite(loss):
            raise SyscallError("failed", f"the loss on the {len(items)} rows is not a number")
        predictions: list[JsonValue] = [
            {"origin": item.origin, "rank": rank}
            for item, rank in zip(items, ranks.tolist(), strict=True)
        ]
        return Measured(
            {
                "loss": loss,
                "mrr": (1.0 / ranks).mean().item(),
                "accuracy": (ranks == 1).float().mean().item(),
            },
            predictions,
        )

    def save(self, folder: Path) -> None:
        """Write an embedding model's folder. Raises: SyscallError("storage")."""
        job = self._encoder.job
        source, encoder = Path(job.base), read_sentence_folder(Path(job.base)).encoder
        try:
            for path in source.rglob("*.json"):
                if path.name == "card.json":  # what the base is and where it is from
                    continue
                target = folder / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            place = folder / encoder.relative_to(source)
            for path in encoder.iterdir():
                if path.suffix == ".txt" or path.name.startswith("tokenizer"):
                    shutil.copyfile(path, place / path.name)
            with quiet():
                merged(self._encoder.network["body"]).save_pretrained(place)
            write_settings(
                folder,
                method=job.method,
                base=job.base_name or source.name,
                max_length_tokens=self._encoder.text.max_length_tokens,
                heads=self._encoder.heads,
            )
        except OSError as problem:
            raise SyscallError(
                "storage", f"the model cannot be written to {folder}: {problem}", path=str(folder)
            ) from problem

    def _cosines(self, model: Any, items: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines `(items, partners)`, and which partner belongs to which item `(items,)`.

        A partner that several rows share is there once, so none is punished for finding it.
        """
        import torch

        keys = _distinct(items)
        texts = self._vectors(model, [item.tokens for item in items])
        found = self._vectors(model, list(keys))
        truth = torch.tensor([keys[item.payload.positive] for item in items], device=texts.device)
        return texts @ found.T, truth

    def _all_vectors(
        self, model: Any, rows: Sequence[tuple[int, ...]], batch_size: int
    ) -> torch.Tensor:
        import torch

        parts = [
            self._vectors(model, rows[first : first + batch_size]).cpu()
            for first in range(0, len(rows), batch_size)
        ]
        return torch.cat(parts)

    def _vectors(self, model: Any, rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Unit vectors `(rows, width)`."""
        import torch

        ids, mask = encoder_net.padded(
            rows, padding=self._encoder.text.padding, device=model["body"].device
        )
        states = encoder_net.token_states(model, ids, mask)
        return torch.nn.functional.normalize(encoder_net.text_vectors(states, mask), dim=1)


def _distinct(items: Sequence[Item]) -> dict[tuple[int, ...], int]:
    """The partners and negatives of items, each once, with their places."""
    wanted = [item.payload.positive for item in items]
    unwanted = [item.payload.negative for item in items if item.payload.negative is not None]
    return {key: place for place, key in enumerate(dict.fromkeys([*wanted, *unwanted]))}


def build(job: TrainJob, device: str, rows: Rows) -> Built:
    """An encoder whose vectors are trained.

    Raises: SyscallError("invalid") when there is nothing to tell apart, or the base makes its
    vectors in another way than by the mean of its states; DeviceError.
    """
    source = read_sentence_folder(Path(job.base))
    if source.poolings != ("mean",) or source.layers:
        raise SyscallError(
            "invalid",
            "base: this embedding model does not take the mean of its states; what is trained "
            "here does",
            field="base",
        )
    if len({row.positive for row in rows.train}) < 2:
        raise SyscallError(
            "invalid",
            "positive: all training rows have the same partner; there is nothing to tell apart",
            field="positive",
        )
    encoder = open_encoder(job, device, [TaskHead("main", "embed", ())])
    task = ContrastTask(encoder)
    return Built(encoder.network, task, task.save, rate(job), is_joint=True, kind="task")
