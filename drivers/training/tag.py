"""The objective `tag`: a BIO label for each word of a sentence, on an encoder's states.

Owns the loss and what a prediction is: a word's label is learnt and read at its first sub-word, and
what is predicted is always legal BIO. Refuses to know steps and files.
Source: Devlin et al., "BERT", 2018 (arXiv 1810.04805), section 5.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos.drivers import encoder_net
from llmos.drivers.bio_labels import OUTSIDE, BioDecoder, all_labels, is_bio, repaired
from llmos.drivers.metrics.entities import score_entities
from llmos.drivers.rows.kinds import TaggedRow
from llmos.drivers.task_folder import TaskHead
from llmos.drivers.training.classify import unknown_label
from llmos.drivers.training.encoder import Encoder, by_length, open_encoder, rate
from llmos.drivers.training.job import TrainJob
from llmos.drivers.training.objectives import Rows
from llmos.drivers.training.task import Built, Encoded, Item, Measured
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonValue

if TYPE_CHECKING:
    import torch


class Words(NamedTuple):
    """A sentence beside its tokens.

    The word at `words[n]` begins at the token `places[n]` and has the label `labels[n]`; `cases`
    has one entry a token. `tags` are those of all words, also of those that the limit left out.
    """

    places: tuple[int, ...]
    words: tuple[int, ...]
    labels: tuple[int, ...]
    cases: tuple[int, ...]
    tags: tuple[str, ...]


class TagTask:
    """Trains one head of an encoder on tagged sentences. Satisfies `Task`."""

    metric = "f1"
    is_higher_better = True

    def __init__(self, encoder: Encoder, place: int = 0) -> None:
        self._encoder = encoder
        self._place = place
        self._head = encoder.heads[place]
        self._numbers = {label: number for number, label in enumerate(self._head.labels)}
        self._decoder = BioDecoder(self._head.labels)

    def encode(self, rows: Sequence[TaggedRow], /) -> Encoded:
        """Raises: SyscallError("invalid") for a tag that no training row has."""
        items: list[Item] = []
        truncated: list[str] = []
        skipped: list[str] = []
        for row in rows:
            tags = repaired(row.tags)
            windows = self._encoder.text.sentence(row.tokens)
            labels = [self._number(row, tag) for tag in tags]
            if not windows:
                skipped.append(row.origin)
                continue
            first = windows[0]
            if len(windows) > 1:
                truncated.append(row.origin)
            kept = tuple(labels[word] for word in first.words)
            words = Words(first.places, first.words, kept, first.cases, tags)
            items.append(Item(first.tokens, words, row.origin, self._head.name))
        return Encoded(tuple(items), truncated=tuple(truncated), skipped=tuple(skipped))

    def loss(self, model: Any, items: Sequence[Item], /) -> tuple[torch.Tensor, float]:
        import torch

        logits = self._logits(model, items)  # (words, labels), of all sentences
        truth = torch.tensor(
            [label for item in items for label in item.payload.labels], device=logits.device
        )
        return torch.nn.functional.cross_entropy(logits, truth, reduction="sum"), float(len(truth))

    def evaluate(self, model: Any, items: Sequence[Item], /, *, batch_size: int) -> Measured:
        import torch

        model.eval()
        found: list[list[str]] = [[] for _ in items]
        loss, words = 0.0, 0
        with torch.inference_mode():
            for places in by_length([item.tokens for item in items], batch_size=batch_size):
                batch = [items[place] for place in places]
                logits = self._logits(model, batch).float()
                truth = [label for item in batch for label in item.payload.labels]
                loss += torch.nn.functional.cross_entropy(
                    logits, torch.tensor(truth, device=logits.device), reduction="sum"
                ).item()
                words += len(truth)
                rows = logits.log_softmax(dim=1).cpu().split([len(i.payload.labels) for i in batch])
                for place, item, scores in zip(places, batch, rows, strict=True):
                    found[place] = self._tags(item.payload, scores)
        if not math.isfinite(loss):
            raise SyscallError("failed", f"the loss on the {len(items)} rows is not a number")
        scores = score_entities([item.payload.tags for item in items], found)
        predictions: list[JsonValue] = [
            {"origin": item.origin, "tags": list(item.payload.tags), "predicted": list(tags)}
            for item, tags in zip(items, found, strict=True)
        ]
        return Measured({"loss": loss / words, **scores.metrics()}, predictions)

    def _tags(self, words: Words, scores: torch.Tensor) -> list[str]:
        """The predicted tag of each word of a sentence; "O" where the limit left one out."""
        tags = [OUTSIDE] * len(words.tags)
        for word, label in zip(words.words, self._decoder.decode(scores.numpy()), strict=True):
            tags[word] = self._head.labels[label]
        return list(repaired(tags))

    def _logits(self, model: Any, items: Sequence[Item]) -> torch.Tensor:
        """The head's outputs `(words, labels)` at each word's first token, sentence by sentence."""
        import torch

        device, padding = model["body"].device, self._encoder.text.padding
        ids, mask = encoder_net.padded(
            [item.tokens for item in items], padding=padding, device=device
        )
        cases, _ = encoder_net.padded(
            [item.payload.cases for item in items], padding=0, device=device
        )
        states = encoder_net.token_states(model, ids, mask, head=self._place, cases=cases)
        rows = [row for row, item in enumerate(items) for _ in item.payload.places]
        columns = [place for item in items for place in item.payload.places]
        chosen = torch.nn.functional.dropout(
            states[rows, columns], self._encoder.job.dropout, training=model.training
        )
        return encoder_net.outputs(model, self._place, chosen)

    def _number(self, row: TaggedRow, tag: str) -> int:
        number = self._numbers.get(tag)
        if number is None:
            raise unknown_label(row.origin, tag, "tags", self._head)
        return number


def build(job: TrainJob, device: str, rows: Rows) -> Built:
    """A tagger of the labels in the training rows, ready to train.

    Raises: SyscallError("invalid") when they have no entity; DeviceError.
    """
    encoder = open_encoder(job, device, [head_of(rows.train)])
    return Built(encoder.network, TagTask(encoder), encoder.save, rate(job), kind="task")


def head_of(rows: Sequence[TaggedRow], name: str = "main") -> TaskHead:
    """The head that rows ask for. Raises: SyscallError("invalid") for rows without entities."""
    tags = {tag for row in rows for tag in row.tags}
    for row in rows:
        for tag in row.tags:
            if not is_bio(tag):
                raise SyscallError(
                    "invalid",
                    f"{row.origin}: tags: {tag!r} is no BIO label; they are O, B-kind and I-kind",
                    field="tags",
                    origin=row.origin,
                )
    if not tags - {OUTSIDE}:
        raise SyscallError(
            "invalid",
            f"tags: none of the {len(rows)} training rows has an entity; there is nothing to learn",
            field="tags",
        )
    return TaskHead(name, "tag", all_labels(tags), reads_case=True)
