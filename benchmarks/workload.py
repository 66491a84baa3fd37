"""What benchmarks let models read: texts of a known length, the same for a seed on every machine.

A word is a plain one or a three-digit number, mixed so that a word costs about 1.7 tokens, which is
what logs, tables and code cost; plain prose costs less.
"""

from __future__ import annotations

import random

_NUMBERS = 0.22
_WORDS = (
    "river", "stone", "lantern", "market", "winter", "copper", "letter", "garden", "thunder",
    "harbour", "silver", "mountain", "weaver", "forest", "candle", "bridge", "orchard",
    "signal", "feather", "window", "morning", "castle", "engine", "shadow", "island", "mirror",
    "pepper", "violin", "wagon", "compass",
)  # fmt: skip
# SmolLM2's ends of text. Forbidding them makes every answer as long as it may be.
ENDS = (0, 2)


def words(draw: random.Random, count: int) -> str:
    """`count` words with spaces between."""
    return " ".join(
        str(draw.randint(100, 999)) if draw.random() < _NUMBERS else draw.choice(_WORDS)
        for _ in range(count)
    )


def endless() -> dict[int, float]:
    """A bias under which an answer ends only at its limit."""
    return dict.fromkeys(ENDS, -100.0)
