"""What sharing KV state saved, from the kernel's own counters."""

from __future__ import annotations

from typing import NamedTuple

from llmos.syscalls.results import KernelInfo
from llmos.tables import count, seconds, total


class Sharing(NamedTuple):
    """`cached_tokens` of `prompt_tokens` were found in KV; `saved_s` is their prefill time.

    `saved_s` is by the rate that the busiest device was measured at, None before a measurement.
    """

    prompt_tokens: int
    cached_tokens: int
    saved_s: float | None

    @classmethod
    def of(cls, info: KernelInfo) -> Sharing:
        """The savings so far."""
        used = total(info.programs.values())
        busiest = max(info.devices, key=lambda device: device.steps, default=None)
        per_s = busiest.prefill_tokens_per_s if busiest is not None else None
        return cls(
            used.tokens_in, used.tokens_cached, used.tokens_cached / per_s if per_s else None
        )

    @property
    def share(self) -> float:
        """The part of all prompt tokens that was not computed again."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def sentence(self) -> str:
        """The savings in words."""
        if not self.prompt_tokens:
            return "no prompt was read"
        text = (
            f"{count(self.cached_tokens)} of {count(self.prompt_tokens)} prompt tokens "
            f"({self.share:.0%}) were shared or cached and not computed again"
        )
        if not self.saved_s:
            return text
        return f"{text}: {seconds(self.saved_s)} of prefill saved at the measured rate"
