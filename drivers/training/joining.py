"""Task models that learnt apart, put together: each keeps its adapter and head, a router chooses.

Nothing learnt before is touched by what is learnt after, so nothing of it is forgotten; what can go
wrong is the choice of the adapter. The router is a linear discriminant on the vectors of the base
without adapters: of each class it needs the mean, and of all classes one covariance. Refuses to
train anything by gradients.
Source: Hayes and Kanan, "Lifelong Machine Learning with Deep Streaming Linear Discriminant
Analysis", 2020 (arXiv 1909.01520).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmos.drivers import encoder_net
from llmos.drivers.encoder_net import Router
from llmos.drivers.encoder_text import EncoderText
from llmos.drivers.length_batches import BATCH_TOKENS, length_batches
from llmos.drivers.rows.kinds import LabelledRow
from llmos.drivers.sentence_folder import read_sentence_folder
from llmos.drivers.task_folder import ADAPTER, ADAPTERS, TaskFolder, read_task, write_settings
from llmos.syscalls.errors import SyscallError

if TYPE_CHECKING:
    import torch

# How far the covariance is drawn towards equal in all directions: with few rows a class most of its
# directions are noise.
_SHRINKAGE = 0.1


class Part(NamedTuple):
    """A task model with an adapter and one head, and the rows that it was trained on."""

    name: str
    folder: Path
    rows: Sequence[LabelledRow]


def join(parts: Sequence[Part], base_folder: Path, folder: Path, *, device: str = "cpu") -> None:
    """Write one task model of several into an empty folder.

    Its heads have the parts' names. Raises: SyscallError("invalid") for a part that is not an
    adapter with one head of classes on the same base, "storage"; DeviceError.
    """
    read = [_checked(part, parts[0]) for part in parts]
    encoder = read_sentence_folder(base_folder).encoder
    most = min(one.max_length_tokens for one in read)
    body = encoder_net.load_body(encoder, device=device)
    network = encoder_net.new_network(body, [one.heads[0] for one in read])
    for place, one in enumerate(read):
        own = encoder_net.new_network(body, one.heads)
        encoder_net.load_heads(own, one.folder)
        network["heads"][place] = own["heads"][0]
    text = EncoderText(encoder, max_length_tokens=most)
    labels = [f"{place} {row.label}" for place, part in enumerate(parts) for row in part.rows]
    texts = [row.text for part in parts for row in part.rows]
    vectors = _vectors(network, text, texts, device=device)
    try:
        encoder_net.save_heads(network, folder, router=fit_router(vectors, labels))
        for place, one in enumerate(read):
            shutil.copytree(one.folder / ADAPTER, folder / ADAPTERS / str(place))
        write_settings(
            folder,
            method=read[0].method,
            base=read[0].base,
            max_length_tokens=most,
            heads=[
                replace(one.heads[0], name=part.name) for one, part in zip(read, parts, strict=True)
            ],
        )
    except OSError as problem:
        raise SyscallError(
            "storage", f"the model cannot be written to {folder}: {problem}", path=str(folder)
        ) from problem


def fit_router(vectors: torch.Tensor, labels: Sequence[str]) -> Router:
    """A router for unit vectors `(rows, width)`, whose labels are "place of the head class"."""
    import torch

    classes = sorted(set(labels))
    numbers = torch.tensor([classes.index(label) for label in labels])
    vectors = vectors.double()
    means = torch.stack([vectors[numbers == n].mean(dim=0) for n in range(len(classes))])
    spread = vectors - means[numbers]  # (rows, width)
    width = vectors.shape[1]
    covariance = spread.T @ spread / len(labels)
    even = torch.eye(width, dtype=torch.float64) * covariance.trace() / width
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * even
    weight = torch.linalg.solve(covariance, means.T).T  # (classes, width)
    bias = -0.5 * (weight * means).sum(dim=1)
    heads = torch.tensor([int(label.split(" ", 1)[0]) for label in classes])
    return Router(weight.float(), bias.float(), heads)


def _checked(part: Part, first: Part) -> TaskFolder:
    found = read_task(part.folder)
    is_fit = found.layout == ADAPTER and len(found.heads) == 1 and found.objective == "classify"
    if not is_fit or found.base != read_task(first.folder).base:
        raise SyscallError(
            "invalid",
            f"{part.name} cannot be joined: it must be an adapter with one head of classes, on the "
            f"base that {first.name} has",
            field="parts",
        )
    return found


def _vectors(
    network: object, text: EncoderText, texts: Sequence[str], *, device: str
) -> torch.Tensor:
    """Unit vectors of the body as it is `(texts, width)`."""
    import torch

    read = [one.tokens for one in text.texts(texts)]
    found: dict[int, torch.Tensor] = {}
    batch_tokens = BATCH_TOKENS[device.partition(":")[0]]
    with torch.inference_mode():
        for batch in length_batches([len(one) for one in read], batch_tokens=batch_tokens):
            ids, mask = encoder_net.padded(
                [read[place] for place in batch], padding=text.padding, device=device
            )
            states = encoder_net.token_states(network, ids, mask)
            vectors = torch.nn.functional.normalize(encoder_net.text_vectors(states, mask), dim=1)
            found |= dict(zip(batch, vectors.cpu(), strict=True))
    return torch.stack([found[place] for place in range(len(read))])
