"""Decoders ready to train, how they read conversations, and the files of what is trained on them.

Owns where the weights come from (the base, or the version that a job goes on from), and attention
over packed batches. Refuses to know data and gradients.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llmos.drivers.adapter_folder import SETTINGS, read_adapter
from llmos.drivers.contract import DeviceError
from llmos.drivers.torch_weights import checkpoint, load_model, load_tokenizer, quiet
from llmos.drivers.training import methods
from llmos.drivers.training.job import TrainJob
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonObject

if TYPE_CHECKING:
    import torch

ATTENTION = "llmos_side_by_side"
# What some architectures ask of attention and `side_by_side` does not do.
_UNSERVED = ("softcap", "s_aux", "sinks")


class Decoder(NamedTuple):
    """A model whose trainable weights are marked, and its tokenizer.

    `virtual_tokens` are trained ones that stand before every row.
    """

    model: Any
    tokenizer: Any
    virtual_tokens: int
    is_packed: bool
    is_half: bool

    def precision(self) -> AbstractContextManager[Any]:
        """Within it products are in bfloat16 where the weights are."""
        import torch

        if not self.is_half:
            return nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)


def open_decoder(job: TrainJob, device: str) -> Decoder:
    """The weights that a job trains. Raises: DeviceError, SyscallError."""
    import torch

    methods.check_method(job.method, device=device)
    torch.set_num_threads(job.threads)
    folder = checkpoint(Path(job.base))
    source = Path(job.parent) if job.parent is not None and job.parent_kind == "full" else folder
    # Virtual tokens stand before each row, so rows cannot share one.
    is_packed = job.packing and job.method != "prompt_tuning"
    is_half = job.precision == "bfloat16" and kind_of(job.method) == "adapter"
    model = _load(source, job, device=device, is_packed=is_packed, is_half=is_half)
    if job.parent is not None and job.parent_kind == "adapter":
        model = _go_on(model, Path(job.parent), job)
    else:
        model = methods.adapt(model, job, task_type="CAUSAL_LM")
    for parameter in model.parameters():
        if parameter.requires_grad:  # steps are too small for half precision
            parameter.data = parameter.data.float()
    virtual = job.rank if job.method == "prompt_tuning" else 0
    return Decoder(model, load_tokenizer(folder), virtual, is_packed, is_half)


def open_for_scoring(base: Path, adapter: Path | None, *, device: str, threads: int) -> Decoder:
    """A base, or a base with an adapter, of which nothing is trained. Raises: DeviceError."""
    import torch

    torch.set_num_threads(threads)
    install_attention()
    folder = checkpoint(base)
    settings = None if adapter is None else read_settings(adapter)
    # Virtual tokens stand before each row, so rows cannot share one.
    virtual = 0 if settings is None else int(settings.get("num_virtual_tokens") or 0)
    model = load_model(
        folder,
        dtype=torch.float32,
        device=device,
        attention="sdpa" if virtual else ATTENTION,
    )
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    return Decoder(model, load_tokenizer(folder), virtual, is_packed=not virtual, is_half=False)


def read_settings(adapter: Path) -> JsonObject:
    """The settings of a peft folder. Raises: DeviceError for one that is damaged."""
    try:
        settings: JsonObject = json.loads((adapter / SETTINGS).read_bytes())
    except (OSError, ValueError) as problem:
        raise DeviceError(f"{adapter} is no readable peft adapter: {problem}") from problem
    if settings.get("peft_type") == "LORA" and not settings.get("use_dora"):
        read_adapter(adapter)  # its errors are clearer than peft's
    return settings


def _load(source: Path, job: TrainJob, *, device: str, is_packed: bool, is_half: bool) -> Any:
    import torch

    install_attention()
    attention = ATTENTION if is_packed else "sdpa"
    if job.method == "qlora":
        return _load_quantised(source, device=device, attention=attention)
    dtype = torch.bfloat16 if is_half else torch.float32
    return load_model(source, dtype=dtype, device=device, attention=attention)


def _load_quantised(source: Path, *, device: str, attention: str) -> Any:
    import torch
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source,
            quantization_config=settings,
            device_map={"": device},
            attn_implementation=attention,
            local_files_only=True,
        )
    except torch.OutOfMemoryError as problem:
        raise DeviceError(f"the weights of {source.name} do not fit on {device}") from problem
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _go_on(model: Any, parent: Path, job: TrainJob) -> Any:
    """The model with the parent's adapter: trained on, or folded in where all weights are trained.

    Raises: DeviceError for a damaged one; SyscallError("invalid") where neither is possible.
    """
    from peft import PeftModel

    adapter = read_adapter(parent)  # its errors are clearer than peft's
    if job.method == "full":
        folded = PeftModel.from_pretrained(model, str(parent)).merge_and_unload()
        return methods.adapt(folded, job, task_type="CAUSAL_LM")
    if job.method != "lora" or adapter.rank != job.rank:
        raise SyscallError(
            "invalid",
            f"base: the version is a lora adapter of rank {adapter.rank}, and only the same method "
            f"and rank, or full, go on from it; the job asks for {job.method} of rank {job.rank}",
            field="base",
        )
    adapted = PeftModel.from_pretrained(model, str(parent), is_trainable=True)
    methods.freeze(adapted, job.freeze)
    return adapted


# --- attention of rows side by side ---------------------------------------------------------------


def install_attention() -> None:
    """Make the attention of packed batches known to transformers under the name `ATTENTION`."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, side_by_side)


def side_by_side(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    lengths: Sequence[int],
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each of the rows that lie one after the other in a batch of one.

    `query` is `(1, heads, tokens, dim)`, `lengths` add up to the tokens; gives
    `(1, tokens, heads, dim)`. Raises: SyscallError("not_available") for an architecture that asks
    for more, which trains with packing off.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    asked = [name for name in _UNSERVED if options.get(name) is not None]
    if sliding_window is not None and sliding_window < max(lengths):
        asked.append("sliding_window")
    if attention_mask is not None or asked:
        raise SyscallError(
            "not_available",
            f"packing: this model's attention cannot be packed ({', '.join(asked) or 'own mask'}); "
            "set packing to false",
            field="packing",
        )
    sizes = list(lengths)
    attended = [
        scaled_dot_product_attention(
            *parts, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=True
        ).transpose(1, 2)
        for parts in zip(
            query.split(sizes, dim=2),
            key.split(sizes, dim=2),
            value.split(sizes, dim=2),
            strict=True,
        )
    ]
    return torch.cat(attended, dim=1), None


# --- files ----------------------------------------------------------------------------------------


def kind_of(method: str) -> Literal["adapter", "full"]:
    """What a version trained by this method is: DoRA and IA3 are folded into the base's weights,
    for no driver applies them beside it.
    """
    return "full" if method in ("full", "dora", "ia3") else "adapter"


def save_decoder(decoder: Decoder, method: str, folder: Path) -> None:
    """Write a peft adapter, or all weights with the tokenizer, into an empty folder."""
    if kind_of(method) == "adapter":
        decoder.model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # an empty card
        return
    model = decoder.model
    if method != "full":
        model = deepcopy(model).merge_and_unload()
    with quiet():
        model.float().save_pretrained(folder)
    decoder.tokenizer.save_pretrained(folder)
