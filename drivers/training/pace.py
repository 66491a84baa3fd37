"""How fast a run goes, from its recent steps: a pause soon stops counting."""

from __future__ import annotations

import time


class Pace:
    """Counts steps as they end. `seconds` is the time of all of them, and of those before it."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._last = time.monotonic()
        self._recent_s: float | None = None
        self._tokens = 0.0

    def tick(self, tokens: int) -> None:
        """Count a step that ends now."""
        now = time.monotonic()
        passed, self._last = now - self._last, now
        self.seconds += passed
        keep = 0.0 if self._recent_s is None else 0.9
        self._recent_s = keep * (self._recent_s or 0.0) + (1 - keep) * passed
        self._tokens = keep * self._tokens + (1 - keep) * tokens

    def skip(self) -> None:
        """Let the time since the last step be no step's."""
        self._last = time.monotonic()

    @property
    def step_s(self) -> float:
        return self._recent_s or 0.0

    @property
    def tokens_per_s(self) -> float:
        return self._tokens / self._recent_s if self._recent_s else 0.0
