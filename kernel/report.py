"""What an engine thread tells the event loop: gauges, and what one iteration brought."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from llmos.kernel.generation import Generation, Outcome


class Gauges(NamedTuple):
    """What a stepper last said about itself."""

    running: int = 0
    waiting: int = 0
    cached_sequences: int = 0
    kv_tokens: int = 0
    shared_tokens: int = 0
    swapped_bytes: int = 0
    steps: int = 0
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0


@dataclass(slots=True)
class Report:
    """What one iteration has to tell the event loop."""

    pieces: list[tuple[Generation, str]] = field(default_factory=list[tuple[Generation, str]])
    ended: list[tuple[Generation, Outcome]] = field(
        default_factory=list[tuple[Generation, Outcome]]
    )
    started_s: float | None = None
    ended_s: float = 0.0
    prefill_tokens: int = 0
    decode_tokens: int = 0
