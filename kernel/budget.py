"""What a remote model may cost: tokens and money, at declared prices.

What an answer will cost is not known before it ends, so its most is reserved first and settled
afterwards; concurrent answers cannot overdraw. Money is in whatever currency the prices are in, a
price for a million tokens. Kept for one kernel's life: what earlier ones spent is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from llmos.syscalls.errors import SyscallError

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of a million tokens, and the bounds; None is unbounded."""

    price_in: float = 0.0
    price_out: float = 0.0
    money: float | None = None
    tokens: int | None = None

    def cost(self, prompt_tokens: int, new_tokens: int) -> float:
        return (prompt_tokens * self.price_in + new_tokens * self.price_out) / MILLION


class Reservation(NamedTuple):
    prompt_tokens: int
    new_tokens: int


class Budget:
    """Event loop only."""

    def __init__(self, device: str, prices: Prices) -> None:
        self._device = device
        self._prices = prices
        self.spent_tokens = 0
        self.spent = 0.0
        self._reserved_tokens = 0
        self._reserved = 0.0

    def reserve(self, prompt_tokens: int, new_tokens: int) -> Reservation:
        """Set aside a prompt and as much of an answer as can be paid for, at least a token.

        Raises: SyscallError("quota_exceeded") naming the bound; then nothing was set aside.
        """
        prices = self._prices
        granted = new_tokens
        if prices.tokens is not None:
            used = self.spent_tokens + self._reserved_tokens
            granted = min(granted, prices.tokens - used - prompt_tokens)
            if granted < 1:
                raise self._spent("budget_tokens", prices.tokens, used, prompt_tokens + 1, "tokens")
        if prices.money is not None:
            used = self.spent + self._reserved
            left = prices.money - used - prices.cost(prompt_tokens, 0)
            if left < prices.cost(0, 1):
                needed = prices.cost(prompt_tokens, 1)
                raise self._spent("budget", prices.money, used, needed, "of money")
            if prices.price_out > 0:
                granted = min(granted, int(left / prices.cost(0, 1)))
        self._reserved_tokens += prompt_tokens + granted
        self._reserved += prices.cost(prompt_tokens, granted)
        return Reservation(prompt_tokens, granted)

    def settle(self, reservation: Reservation, *, prompt_tokens: int, new_tokens: int) -> None:
        """Replace a reservation by what was used."""
        prices = self._prices
        self._reserved_tokens -= reservation.prompt_tokens + reservation.new_tokens
        self._reserved -= prices.cost(reservation.prompt_tokens, reservation.new_tokens)
        self.spent_tokens += prompt_tokens + new_tokens
        self.spent += prices.cost(prompt_tokens, new_tokens)

    def _spent(
        self, quota: str, limit: float, used: float, needed: float, unit: str
    ) -> SyscallError:
        return SyscallError(
            "quota_exceeded",
            f"the {quota} of device {self._device} is {limit:g} {unit}: {used:g} spent or "
            f"reserved, {needed:g} more needed; use another model, or raise "
            f"models.{self._device}.{quota}",
            quota=quota,
            limit=limit,
            used=used,
            needed=needed,
            device=self._device,
        )
