"""An encoder with heads, as torch modules: what training steps and what serving computes.

Owns the arithmetic between token ids and the heads' outputs, and the loading of weights. Refuses to
know texts, labels' names and losses. A network is a plain `ModuleDict`:

    body             the encoder, perhaps with peft's adapters on it
    heads.N.linear   one output a label
    heads.N.cases    an embedding of each word's way of writing, added to the tokens' own
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos.drivers.contract import DeviceError
from llmos.drivers.encoder_text import Case
from llmos.drivers.task_folder import HEADS, TaskHead
from llmos.drivers.torch_weights import quiet

if TYPE_CHECKING:
    import torch

_ROUTER = "router."  # before the names of a router's tensors in the heads' file


class Router(NamedTuple):
    """Which head a text is for, by its vector from the body without adapters.

    Each row of `weight` is for one class of one head, whose place is in `heads`.
    """

    weight: torch.Tensor  # (classes, width)
    bias: torch.Tensor  # (classes,)
    heads: torch.Tensor  # (classes,)

    def choose(self, vectors: torch.Tensor) -> list[int]:
        """The head of each text, for vectors `(texts, width)` of any length."""
        import torch

        units = torch.nn.functional.normalize(vectors, dim=1)
        classes = (units @ self.weight.T + self.bias).argmax(dim=1)
        chosen: list[int] = self.heads[classes].tolist()
        return chosen


def load_body(folder: Path, *, device: str) -> Any:
    """An encoder in float32, in evaluation mode, all weights frozen. Raises: DeviceError."""
    import torch
    from transformers import AutoModel

    try:
        with quiet():
            body: Any = AutoModel.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True
            )
        return body.to(device).eval().requires_grad_(False)
    except torch.OutOfMemoryError as problem:
        raise DeviceError(f"the weights of {folder.name} do not fit on {device}") from problem
    except Exception as problem:
        raise DeviceError(f"transformers cannot load {folder}: {problem}") from problem


def load_adapter(body: Any, folder: Path, *, name: str = "default", trainable: bool = False) -> Any:
    """A body with a saved peft adapter on it, beside those that it has. Raises: DeviceError."""
    from peft import PeftModel

    try:
        if isinstance(body, PeftModel):
            body.load_adapter(str(folder), adapter_name=name, is_trainable=trainable)
            return body
        return PeftModel.from_pretrained(
            body, str(folder), adapter_name=name, is_trainable=trainable
        ).train(body.training)
    except Exception as problem:
        raise DeviceError(f"peft cannot load the adapter {folder}: {problem}") from problem


def new_head(body: Any, head: TaskHead) -> Any:
    """A head of small random weights, drawn from torch's generator."""
    import torch

    width: int = body.config.hidden_size
    modules: dict[str, Any] = {}
    if head.labels:
        modules["linear"] = torch.nn.Linear(width, len(head.labels))
        torch.nn.init.normal_(modules["linear"].weight, std=0.02)
        torch.nn.init.zeros_(modules["linear"].bias)
    if head.reads_case:
        modules["cases"] = torch.nn.Embedding(len(Case), width)
        torch.nn.init.zeros_(modules["cases"].weight)  # the body starts as it was
    return torch.nn.ModuleDict(modules).to(body.device)


def new_network(body: Any, heads: Sequence[TaskHead]) -> Any:
    """A body with new heads."""
    import torch

    return torch.nn.ModuleDict(
        {"body": body, "heads": torch.nn.ModuleList([new_head(body, head) for head in heads])}
    )


def load_heads(network: Any, folder: Path) -> Router | None:
    """Fill a network's heads from a task folder; gives its router if it has one.

    Raises: DeviceError when the file does not fit the settings.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / HEADS)
        own = {name: one for name, one in tensors.items() if not name.startswith(_ROUTER)}
        network["heads"].load_state_dict(own)
        if len(own) == len(tensors):
            return None
        device = network["body"].device
        return Router(*(tensors[_ROUTER + name].to(device) for name in Router._fields))
    except (OSError, SafetensorError, RuntimeError, KeyError) as problem:
        raise DeviceError(f"the heads of {folder} are damaged: {problem}") from problem


def save_heads(network: Any, folder: Path, *, router: Router | None = None) -> None:
    """Write the heads of a network into a task folder. Raises: OSError."""
    from safetensors.torch import save_file

    tensors = {key: value.contiguous() for key, value in network["heads"].state_dict().items()}
    if router is not None:
        tensors |= {_ROUTER + name: one.contiguous() for name, one in router._asdict().items()}
    save_file(tensors, folder / HEADS)


def join_heads(folders: Sequence[Path], target: Path, *, router: Router) -> None:
    """Write the heads of task folders, one folder after the other, into another, with a router.

    Raises: DeviceError for a damaged file; OSError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    found = {_ROUTER + name: one.contiguous() for name, one in router._asdict().items()}
    first = 0
    for folder in folders:
        try:
            tensors = load_file(folder / HEADS)
        except (OSError, SafetensorError) as problem:
            raise DeviceError(f"the heads of {folder} are damaged: {problem}") from problem
        places: set[int] = set()
        for name, one in tensors.items():
            if not name.startswith(_ROUTER):
                place, _, weight = name.partition(".")
                found[f"{first + int(place)}.{weight}"] = one
                places.add(int(place))
        first += len(places)
    save_file(found, target / HEADS)


# --- the forward pass -----------------------------------------------------------------------------


def padded(
    rows: Sequence[Sequence[int]], *, padding: int, device: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids side by side `(rows, tokens)`, and the mask that is 1 for tokens."""
    import torch

    width = max(len(row) for row in rows)
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows])
    mask = (torch.arange(width)[None, :] < lengths[:, None]).long()
    return ids.to(device), mask.to(device)


def token_states(
    network: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    head: int | None = None,
    cases: torch.Tensor | None = None,
) -> torch.Tensor:
    """The body's states `(rows, tokens, width)`.

    With a head that reads case, `cases` `(rows, tokens)` says how each token's word is written. A
    body in training multiplies in bfloat16 where the device does that natively, half as fast again
    on a CPU; weights, sums and what is given are float32.
    """
    body = network["body"]
    chosen = None if head is None else network["heads"][head]
    with _mixed_precision(body):
        if cases is None or chosen is None or "cases" not in chosen:
            states = body(input_ids=ids, attention_mask=mask).last_hidden_state
        else:
            inputs = body.get_input_embeddings()(ids) + chosen["cases"](cases)
            states = body(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
    return states.float()


def _mixed_precision(body: Any) -> AbstractContextManager[Any]:
    import torch

    kind: str = body.device.type
    is_used = body.training and (kind == "cuda" or _has_native_bfloat16())
    return torch.autocast(kind, torch.bfloat16, enabled=is_used)


@cache
def _has_native_bfloat16() -> bool:
    """Whether the processor says that it multiplies bfloat16 (Linux; elsewhere nobody is asked)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def text_vectors(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of a text's states `(rows, width)`."""
    weights = mask.unsqueeze(2).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def outputs(network: Any, head: int, states: torch.Tensor) -> torch.Tensor:
    """A head's outputs `(..., labels)` for states or vectors `(..., width)`."""
    found: torch.Tensor = network["heads"][head]["linear"](states)
    return found
