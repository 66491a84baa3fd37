"""How fast each model was when it last worked here, kept between runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from llmos.syscalls.results import KernelInfo

_FILE = "rates.json"


class Rates(NamedTuple):
    """Tokens a second; None before the first measurement."""

    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None


def remember_rates(home: Path, info: KernelInfo) -> None:
    """Keep what a kernel has measured; models that it did not use keep their older figures.

    A home that cannot be written is left alone: rates are a convenience, not a result.
    """
    measured = {
        device.name: Rates(device.prefill_tokens_per_s, device.decode_tokens_per_s)
        for device in info.devices
        if device.prefill_tokens_per_s or device.decode_tokens_per_s
    }
    if not measured or not os.access(home, os.W_OK):
        return
    kept = {**recall_rates(home), **measured}
    scratch = home / f".{_FILE}.{os.getpid()}"
    scratch.write_text(json.dumps({name: rates._asdict() for name, rates in kept.items()}))
    scratch.replace(home / _FILE)


def recall_rates(home: Path) -> dict[str, Rates]:
    """The kept rates by model; none where the file is missing or not ours."""
    path = home / _FILE
    if not path.is_file():
        return {}
    try:
        kept: dict[str, dict[str, Any]] = json.loads(path.read_text())
        return {name: Rates(**rates) for name, rates in kept.items()}
    except (ValueError, TypeError, AttributeError):
        return {}
