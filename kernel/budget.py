"""What a remote model may cost: tokens and money, at declared prices.

What an answer will cost is not known before it ends, so its most is reserved first and settled
afterwards; concurrent answers cannot overdraw. Money is in whatever currency the prices are in, a
price for a million tokens.

What was spent is kept for later starts (`memory/spending.py`). Where that cannot be read, a model
with a bound is refused: to begin at nothing again would overdraw, and is for a person to decide.
One without a bound serves, with a warning. Not counted: what was under way when the kernel was
killed, and what other kernels of the same home have set aside and not settled yet.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

from llmos.memory.spending import Spending, Spent
from llmos.syscalls.errors import SyscallError

MILLION = 1_000_000
log = logging.getLogger("llmos.kernel")


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of a million tokens, and the bounds; None is unbounded."""

    price_in: float = 0.0
    price_out: float = 0.0
    money: float | None = None
    tokens: int | None = None

    @property
    def is_bounded(self) -> bool:
        return self.money is not None or self.tokens is not None

    def cost(self, prompt_tokens: int, new_tokens: int) -> float:
        return (prompt_tokens * self.price_in + new_tokens * self.price_out) / MILLION


class Reservation(NamedTuple):
    prompt_tokens: int
    new_tokens: int


class Budget:
    """The budget of one device, going on from what `spending` knows. Event loop only.

    Raises: SyscallError("storage") when that cannot be read and there is a bound.
    """

    def __init__(self, device: str, prices: Prices, spending: Spending | None = None) -> None:
        self._device = device
        self._prices = prices
        self._spending = spending
        self._unsaved = Spent()
        self.spent_tokens, self.spent = self._spent_before()
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
                raise self._refusal(
                    "budget_tokens", prices.tokens, used, prompt_tokens + 1, "tokens"
                )
        if prices.money is not None:
            used = self.spent + self._reserved
            left = prices.money - used - prices.cost(prompt_tokens, 0)
            if left < prices.cost(0, 1):
                needed = prices.cost(prompt_tokens, 1)
                raise self._refusal("budget", prices.money, used, needed, "of money")
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
        self._charge(Spent(prompt_tokens + new_tokens, prices.cost(prompt_tokens, new_tokens)))

    def _spent_before(self) -> Spent:
        if self._spending is None:
            return Spent()
        try:
            return self._spending.of(self._device)
        except SyscallError as problem:
            if self._prices.is_bounded:
                raise
            log.warning("the cost of %s is not kept: %s", self._device, problem.message)
            self._spending = None
            return Spent()

    def _charge(self, cost: Spent) -> None:
        """Count a cost, and keep it; what the disk refuses is tried again with the next one."""
        self.spent_tokens += cost.tokens
        self.spent += cost.money
        unsaved = Spent(self._unsaved.tokens + cost.tokens, self._unsaved.money + cost.money)
        if self._spending is None or not any(unsaved):
            return
        try:
            self.spent_tokens, self.spent = self._spending.add(self._device, unsaved)
            self._unsaved = Spent()
        except SyscallError as problem:
            self._unsaved = unsaved
            log.warning("the cost of %s is not kept yet: %s", self._device, problem.message)

    def _refusal(
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
