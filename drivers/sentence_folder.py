"""What the files of a sentence-transformers folder say of its model: how a text becomes a vector.

Owns the reading of `modules.json` and of the settings that it points to: the encoder's place, the
poolings, dense layers behind them, the prefixes that queries and documents get. A folder without
`modules.json` is a plain encoder, whose token states are averaged. Reads JSON only, so it answers
before torch is loaded. Refuses what it cannot compute as the model's makers did.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from llmos.drivers.contract import DeviceError

Pooling = Literal["cls", "max", "mean", "mean_sqrt_len", "weighted_mean", "last"]

# Keys of a pooling's settings, in the order in which several poolings are put side by side.
_POOLINGS: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}


@dataclass(frozen=True, slots=True)
class SentenceFolder:
    """How a model makes one vector of a text.

    `layers` are the folders of dense layers, applied in order to the pooled vector. `max_tokens` is
    what the model was trained for, None where it does not say. Prefixes are put before a text.
    """

    encoder: Path
    poolings: tuple[Pooling, ...] = ("mean",)
    layers: tuple[Path, ...] = ()
    max_tokens: int | None = None
    is_lower_case: bool = False
    query_prefix: str = ""
    document_prefix: str = ""


def read_sentence_folder(folder: Path) -> SentenceFolder:
    """The model in a folder.

    Raises: DeviceError when a file cannot be read, or asks for what is not computed here.
    """
    encoder, poolings, layers, is_unit = folder, ("mean",), [], False
    for module in _modules(folder):
        kind, place = str(module.get("type")).rpartition(".")[2], folder / str(module.get("path"))
        match kind:
            case "Transformer":
                encoder = place
            case "Pooling":
                poolings = _poolings(folder.name, _settings(place / "config.json"))
            case "Dense":
                layers.append(place)
            case "Normalize":
                is_unit = True
            case "Dropout":  # it does nothing outside training
                pass
            case _:
                raise DeviceError(f"{folder.name} has a module {kind}, which is not served")
    own = _settings(folder / "config_sentence_transformers.json")
    compares_by = own.get("similarity_fn_name") or "cosine"
    if compares_by != "cosine" and not is_unit:
        raise DeviceError(
            f"{folder.name} compares vectors by {compares_by}, lengths included; here they are "
            "compared by direction (cosine). Choose a model made for cosine"
        )
    trained = _settings(encoder / "sentence_bert_config.json")
    prompts = own.get("prompts") or {}
    default = prompts.get(own.get("default_prompt_name"), "")
    return SentenceFolder(
        encoder=encoder,
        poolings=cast("tuple[Pooling, ...]", poolings),
        layers=tuple(layers),
        max_tokens=trained.get("max_seq_length"),
        is_lower_case=bool(trained.get("do_lower_case")),
        query_prefix=prompts.get("query", default),
        document_prefix=prompts.get("document", prompts.get("passage", default)),
    )


def dimensions(folder: Path) -> int:
    """The width of the model's vectors. Raises: DeviceError."""
    model = read_sentence_folder(folder)
    if model.layers:
        settings, key, times = _settings(model.layers[-1] / "config.json"), "out_features", 1
    else:
        settings, key = _settings(model.encoder / "config.json"), "hidden_size"
        times = len(model.poolings)
    width = settings.get(key)
    if not isinstance(width, int):
        raise DeviceError(f"{folder} is no embedding model: its config.json has no {key}")
    return width * times


def identity(folder: Path) -> str:
    """A short name of what the model computes: models with the same give the same vectors.

    Reads every byte of the weights, which is a fraction of a second for a small model. Raises:
    DeviceError.
    """
    paths = [path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")]
    if not paths:
        raise DeviceError(f"there is no model in {folder}")
    digest = hashlib.sha256()
    try:
        for path in sorted(path for path in paths if path.name != "card.json"):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as problem:
        raise DeviceError(f"cannot read {folder}: {problem}") from problem
    return digest.hexdigest()[:16]


def activation(layer: Path) -> str:
    """The name of a dense layer's activation function. Raises: DeviceError."""
    named = _settings(layer / "config.json").get("activation_function")
    return str(named or "torch.nn.modules.linear.Identity").rpartition(".")[2]


def _modules(folder: Path) -> list[dict[str, Any]]:
    found = _read(folder / "modules.json")
    if found is not None:
        return cast("list[dict[str, Any]]", found)
    pooling = {"type": "Pooling", "path": "1_Pooling"}
    return [pooling] if (folder / "1_Pooling").exists() else []


def _poolings(name: str, settings: Mapping[str, Any]) -> tuple[Pooling, ...]:
    asked = [key for key, is_on in settings.items() if key.startswith("pooling_mode") and is_on]
    unknown = [key for key in asked if key not in _POOLINGS]
    if unknown or settings.get("include_prompt") is False:
        what = ", ".join(unknown) or "without the prompt's tokens"
        raise DeviceError(f"{name} pools by {what}, which is not served")
    return tuple(kind for key, kind in _POOLINGS.items() if key in asked) or ("mean",)


def _settings(path: Path) -> dict[str, Any]:
    """A file of settings; nothing when there is none."""
    found = _read(path)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise DeviceError(f"{path} holds no JSON object")
    return cast("dict[str, Any]", found)


def _read(path: Path) -> object | None:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as problem:
        raise DeviceError(f"cannot read {path}: {problem}") from problem
