"""Which weights a job trains, and at what rate each: full training and peft's methods.

Owns the method's weights on a model, freezing, and rates by layer; for decoders and encoders alike.
Refuses to know objectives and data.
Sources: Hu et al. 2021 (LoRA, arXiv 2106.09685), Dettmers et al. 2023 (QLoRA, 2305.14314), Liu et
al. 2024 (DoRA, 2402.09353), Liu et al. 2022 (IA3, 2205.05638), Lester et al. 2021 (prompt tuning,
2104.08691).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

from llmos.drivers.training.job import TrainJob
from llmos.syscalls.errors import SyscallError

# Peaks that train well at a few hundred to a few thousand steps; one order of magnitude between
# methods that move all weights and those that move few.
RATES = {
    "full": 5e-5,
    "lora": 2e-4,
    "qlora": 2e-4,
    "dora": 2e-4,
    "ia3": 5e-3,
    "prompt_tuning": 3e-2,
}
# Methods whose weights fold into the base's; the others are needed beside it when it serves.
MERGEABLE = ("lora", "qlora", "dora", "ia3")

_LAYER = re.compile(r"\.layers?\.(\d+)\.|\.h\.(\d+)\.")
_EMBEDDINGS = re.compile(r"embed|\bwte\b|\bwpe\b")
_SPAN = re.compile(r"layers\.(\d+)(?:-(\d+))?")


def check_method(method: str, *, device: str) -> None:
    """Refuse a method that this machine cannot train. Raises: SyscallError("not_available")."""
    if method == "prompt":
        raise _not_available(method, "it trains nothing, so there is no job to run")
    if method == "qlora":
        if not device.startswith("cuda"):
            raise _not_available(method, f"it needs a CUDA device, and this job runs on {device}")
        if find_spec("bitsandbytes") is None:
            raise _not_available(method, "the package bitsandbytes is not installed")


def adapt(model: Any, job: TrainJob, *, task_type: str | None = None) -> Any:
    """The model with the method's weights trainable and, unless the method is full, no others.

    `task_type` is peft's: "CAUSAL_LM", "FEATURE_EXTRACTION", ... New weights depend on the job's
    seed only. `freeze` is obeyed.
    """
    import torch

    torch.manual_seed(job.seed)
    if job.method == "full":
        model.requires_grad_(True)
    else:
        from peft import get_peft_model

        model.requires_grad_(False)
        model = get_peft_model(model, _settings(job, task_type))
    freeze(model, job.freeze)
    return model


def _settings(job: TrainJob, task_type: str | None) -> Any:
    from peft import IA3Config, LoraConfig, PromptTuningConfig

    kind: Any = task_type
    if job.method == "ia3":
        return IA3Config(task_type=kind)
    if job.method == "prompt_tuning":
        return PromptTuningConfig(task_type=kind, num_virtual_tokens=job.rank)
    return LoraConfig(
        r=job.rank,
        lora_alpha=job.alpha or 2 * job.rank,  # pyright: ignore[reportArgumentType]
        lora_dropout=job.dropout,
        target_modules="all-linear",
        use_dora=job.method == "dora",
        task_type=kind,
    )


# --- freezing and rates ---------------------------------------------------------------------------


def freeze(model: Any, names: Sequence[str]) -> None:
    """Train no weights of these: "embeddings", "layers.3", "layers.0-3", or part of a name.

    Raises: SyscallError("invalid") for a name that fits no weight, or when nothing is left.
    """
    for name in names:
        fitting = [p for found, p in model.named_parameters() if _fits(name, found)]
        if not fitting:
            raise SyscallError(
                "invalid",
                f"freeze: no weight of the model is called {name}; say embeddings, layers.0-3 or "
                "part of a weight's name",
                field="freeze",
            )
        for parameter in fitting:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise SyscallError("invalid", "freeze: nothing is left to train", field="freeze")


def _fits(name: str, parameter: str) -> bool:
    if name == "embeddings":
        return _layer_of(parameter) is None and bool(_EMBEDDINGS.search(parameter))
    if span := _SPAN.fullmatch(name):
        first, last = int(span[1]), int(span[2] or span[1])
        layer = _layer_of(parameter)
        return layer is not None and first <= layer <= last
    return name in parameter


def parameter_groups(
    named: Iterable[tuple[str, Any]], *, weight_decay: float, layer_decay: float | None
) -> list[dict[str, Any]]:
    """Trainable parameters in an optimizer's groups, each with its `scale` of the learning rate.

    The scale is 1 above all layers and `layer_decay` times less from each layer to the one below,
    the embeddings' the smallest. Biases and norms do not decay.
    """
    trainable = [(name, p) for name, p in named if p.requires_grad]
    top = 1 + max((_layer_of(name) or 0 for name, _ in trainable), default=0)
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in trainable:
        layer = _layer_of(name)
        if layer is None:
            layer = -1 if _EMBEDDINGS.search(name) else top
        scale = 1.0 if layer_decay is None else layer_decay ** (top - layer)
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def _layer_of(parameter: str) -> int | None:
    found = _LAYER.search(f".{parameter}")
    return None if found is None else int(found[1] or found[2])


def _not_available(method: str, why: str) -> SyscallError:
    return SyscallError(
        "not_available", f"method: {method} cannot train here: {why}", field="method"
    )
