"""Encoders ready to train, with heads on them, and their files: what all encoder objectives share.

Owns where the body comes from (the base, or the version that a job goes on from), which weights are
trained, the heads' growth by new labels, and how a trained version is written. Refuses to know
losses and rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmos.drivers import encoder_net
from llmos.drivers.embedding import longest_text
from llmos.drivers.encoder_text import EncoderText
from llmos.drivers.sentence_folder import read_sentence_folder
from llmos.drivers.task_folder import (
    ADAPTER,
    BODY,
    HEADS,
    TaskFolder,
    TaskHead,
    read_task,
    write_settings,
)
from llmos.drivers.torch_weights import quiet
from llmos.drivers.training import methods
from llmos.drivers.training.job import TrainJob
from llmos.syscalls.errors import SyscallError

if TYPE_CHECKING:
    import torch

# Peaks at which encoders train well; their layers are narrower and fewer than decoders'.
RATES = {"full": 1e-4, "lora": 1e-3, "dora": 1e-3, "ia3": 5e-3}


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder with heads, its trainable weights marked.

    `learnt` is how many of each head's labels, the first ones, have been trained before.
    `is_on_base` is whether the body under an adapter is the base's own, so that the adapter is all
    that a version has to keep.
    """

    network: Any
    text: EncoderText
    heads: tuple[TaskHead, ...]
    learnt: tuple[int, ...]
    job: TrainJob
    is_on_base: bool

    def save(self, folder: Path) -> None:
        """Write a task folder. Raises: SyscallError("storage")."""
        try:
            layout = self._save_body(folder)
            encoder_net.save_heads(self.network, folder)
            write_settings(
                folder,
                method=self.job.method if layout == ADAPTER else "full",
                base=base_name(self.job),
                max_length_tokens=self.text.max_length_tokens,
                heads=self.heads,
            )
        except OSError as problem:
            raise SyscallError(
                "storage", f"the model cannot be written to {folder}: {problem}", path=str(folder)
            ) from problem

    def _save_body(self, folder: Path) -> Literal["body", "adapter"]:
        body = self.network["body"]
        if self.job.method != "full" and self.is_on_base:
            body.save_pretrained(folder / ADAPTER)
            return ADAPTER
        with quiet():
            merged(body).save_pretrained(folder / BODY)
        copy_tokenizer(encoder_folder(self.job), folder / BODY)
        return BODY


def open_encoder(job: TrainJob, device: str, heads: Sequence[TaskHead]) -> Encoder:
    """The body that a job trains, with these heads on it.

    A job that goes on from a version keeps its heads: a head of the same name and objective keeps
    its labels' weights and gets new ones for labels that are new. Raises: DeviceError,
    SyscallError.
    """
    import torch

    _check_method(job, device)
    torch.manual_seed(job.seed)
    encoder = encoder_folder(job)
    parent = None if job.parent is None else _read_parent(Path(job.parent))
    body, is_on_base = _body(job, device, encoder, parent)
    known = () if parent is None else parent.heads
    grown = tuple(_grown(head, known) for head in heads)
    network = encoder_net.new_network(body, grown)
    if parent is not None and (parent.folder / HEADS).is_file():
        _fill(network, grown, parent)
    for weights in network["heads"].parameters():
        weights.requires_grad_(True)
    methods.freeze(network, job.freeze)
    most = min(job.max_length_tokens, longest_text(body.config))
    text = EncoderText(encoder, max_length_tokens=most)
    same = [_same(head, known) for head in heads]
    learnt = tuple(0 if head is None else len(head.labels) for head in same)
    return Encoder(network, text, grown, learnt, job, is_on_base)


def merged(body: Any) -> Any:
    """The plain encoder, an adapter's change in its weights; a copy if there is an adapter."""
    from copy import deepcopy

    from peft import PeftModel

    return deepcopy(body).merge_and_unload() if isinstance(body, PeftModel) else body


def rate(job: TrainJob) -> float:
    """The peak of the learning rate where the job names none."""
    return RATES[job.method]


def mean_vectors(encoder: Encoder, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """The mean states `(rows, width)` of token rows, on the CPU, nothing trained."""
    import torch

    network = encoder.network
    was_training = network.training
    network.eval()
    found = torch.empty((len(rows), network["body"].config.hidden_size))
    with torch.inference_mode():
        for places in by_length(rows, batch_size=32):
            ids, mask = encoder_net.padded(
                [rows[place] for place in places],
                padding=encoder.text.padding,
                device=network["body"].device,
            )
            states = encoder_net.token_states(network, ids, mask)
            found[places] = encoder_net.text_vectors(states, mask).cpu()
    network.train(was_training)
    return found.clone()


def by_length(rows: Sequence[Sequence[int]], *, batch_size: int) -> list[list[int]]:
    """Places of rows in batches of like lengths."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def base_name(job: TrainJob) -> str:
    """What a version calls the encoder that it was trained from."""
    return job.base_name or Path(job.base).name


def encoder_folder(job: TrainJob) -> Path:
    """Where the base's encoder and tokenizer are. Raises: DeviceError."""
    return read_sentence_folder(Path(job.base)).encoder


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Put the tokenizer's files of one encoder beside the weights of another. Raises: OSError."""
    for path in source.iterdir():
        if path.name.startswith(("tokenizer", "special_tokens", "vocab", "merges")):
            shutil.copyfile(path, folder / path.name)


# --- the body -------------------------------------------------------------------------------------


def _check_method(job: TrainJob, device: str) -> None:
    methods.check_method(job.method, device=device)
    if job.method not in RATES:
        raise SyscallError(
            "invalid",
            f"method: {job.method} does not train encoders; use one of {', '.join(RATES)}",
            field="method",
        )


def _read_parent(folder: Path) -> TaskFolder:
    parent = read_task(folder)
    if parent.layout == "adapters":
        raise SyscallError(
            "invalid",
            f"base: {folder.name} has an adapter for each of its tasks; train the new task on the "
            "base and name this version in join",
            field="base",
        )
    return parent


def _body(job: TrainJob, device: str, encoder: Path, parent: TaskFolder | None) -> tuple[Any, bool]:
    """The body with its trainable weights marked, and whether it stands on the base itself."""
    layout = "base" if parent is None else parent.layout
    if parent is not None and parent.objective == "embed":  # an embedding model's own folder
        body, is_on_base = _plain(read_sentence_folder(parent.folder).encoder, device), False
    elif parent is not None and layout == BODY:
        body, is_on_base = _plain(parent.folder / BODY, device), False
    else:
        body, is_on_base = _plain(encoder, device), True
    if parent is not None and layout == ADAPTER:
        if parent.method == job.method:
            return encoder_net.load_adapter(body, parent.folder / ADAPTER, trainable=True), True
        adapted = encoder_net.load_adapter(body, parent.folder / ADAPTER)
        body, is_on_base = adapted.merge_and_unload(), False
    unfrozen = job.model_copy(update={"freeze": ()})  # names are of the network, heads included
    return methods.adapt(body, unfrozen, task_type="FEATURE_EXTRACTION"), is_on_base


def _plain(folder: Path, device: str) -> Any:
    body = encoder_net.load_body(folder, device=device)
    if getattr(body, "pooler", None) is not None:
        body.pooler = None  # BERT's own, of the first token: no head here reads it
    return body


# --- the heads ------------------------------------------------------------------------------------


def _grown(head: TaskHead, known: Sequence[TaskHead]) -> TaskHead:
    """A head with the labels that it had, in their places, and the new ones behind."""
    before = _same(head, known)
    if before is None:
        return head
    labels = (*before.labels, *(one for one in head.labels if one not in before.labels))
    return replace(head, labels=labels, reads_case=before.reads_case)


def _same(head: TaskHead, known: Sequence[TaskHead]) -> TaskHead | None:
    found = (one for one in known if (one.name, one.objective) == (head.name, head.objective))
    return next(found, None)


def _fill(network: Any, heads: Sequence[TaskHead], parent: TaskFolder) -> None:
    """Copy what the parent's heads have learnt."""
    import torch

    before = encoder_net.new_network(network["body"], parent.heads)["heads"]
    encoder_net.load_heads({"body": network["body"], "heads": before}, parent.folder)
    with torch.no_grad():
        for place, head in enumerate(heads):
            same = _same(head, parent.heads)
            if same is None:
                continue
            source, target = before[parent.heads.index(same)], network["heads"][place]
            for name, weights in source.named_parameters():
                target.get_parameter(name)[: len(weights)].copy_(weights)
