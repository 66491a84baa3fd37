"""Which file, and with which settings, a configured model opens.

Joins what the configuration says with what `llmos tune` found: a setting that somebody wrote down
always holds, and what nobody set is the tuning's. Refuses to measure: a model that was never tuned
opens as shipped.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Literal, NamedTuple

from llmos.config import ModelConfig
from llmos.drivers.contract import DeviceError, ModelSpec
from llmos.drivers.llama_requantise import requantised
from llmos.memory.tuned import Choice, recall

_logger = logging.getLogger(__name__)


def fitted(spec: ModelSpec, model: ModelConfig, tuned_folder: Path) -> ModelSpec:
    """`spec`, whose path is the file as shipped, as the model is to be opened.

    Raises: DeviceError when a format that was asked for by name cannot be made.
    """
    if model.driver != "llama_cpp" or model.weights == "shipped":
        return spec
    if model.weights != "tuned":
        return dataclasses.replace(spec, path=requantised(spec.path, model.weights))
    tuned = recall(tuned_folder, spec.path)
    if tuned is None:
        _logger.info(
            "%s opens as shipped; `llmos tune %s` finds what is fastest on this machine",
            spec.path.name,
            spec.name,
        )
        return spec
    return chosen(spec, tuned.choice, said=model.model_fields_set)


class InForce(NamedTuple):
    """What weights a model opens with, and on whose word."""

    weights: str
    by: Literal["configured", "tuned", "not tuned"]

    def __str__(self) -> str:
        return f"{self.weights} ({self.by})"


def in_force(model: ModelConfig, source: Path, tuned_folder: Path) -> InForce:
    """What a llama_cpp model whose file as shipped is `source` opens with."""
    if model.weights != "tuned":
        return InForce(model.weights, "configured")
    tuned = recall(tuned_folder, source)
    return (
        InForce("shipped", "not tuned") if tuned is None else InForce(tuned.choice.weights, "tuned")
    )


def chosen(spec: ModelSpec, choice: Choice, *, said: set[str]) -> ModelSpec:
    """`spec` with a tuning's choice, but for the settings named in `said`."""
    changes = choice.model_dump(exclude={"weights", *said}, exclude_none=True)
    spec = dataclasses.replace(spec, **changes)
    if choice.weights == "shipped":
        return spec
    try:
        # It is there unless somebody deleted it; then it is made again.
        return dataclasses.replace(spec, path=requantised(spec.path, choice.weights))
    except DeviceError as problem:
        _logger.warning("%s opens as shipped: %s", spec.name, problem)
        return spec
