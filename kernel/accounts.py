"""What processes have used, and the quotas that bound it.

A bound holds for a process and its descendants together: every charge is made to the process and
to each ancestor, and refused as a whole when one of them cannot afford it. What will be used but is
not known yet (tokens of a generation, KV, the time of a tool) is reserved first and settled exactly
afterwards, so that concurrent calls cannot overdraw. Event-loop thread only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeVar

from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Accounting
from llmos.syscalls.rights import Quota

N = TypeVar("N", int, float)
Resource = Literal["tokens_in", "tokens_out", "kv_bytes", "tool_s", "children"]
_UNITS = {
    "tokens_in": "tokens",
    "tokens_out": "tokens",
    "kv_bytes": "bytes",
    "tool_s": "s",
    "children": "children",
}


@dataclass(slots=True)
class Account:
    """One process's use. `held` is what it and its descendants have used or reserved."""

    pid: int
    quota: Quota
    parent: Account | None
    syscalls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    queued_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tool_s: float = 0.0
    kv_byte_s: float = 0.0
    kv_bytes: int = 0
    children: int = 0
    held: dict[Resource, float] = field(default_factory=dict[Resource, float])

    def charge(self, resource: Resource, amount: float) -> None:
        """Use or reserve some of a resource.

        Raises: SyscallError("quota_exceeded") naming the quota, the limit and the remedy; then
        nothing was charged.
        """
        for account in self._lineage():
            limit = getattr(account.quota, resource)
            if limit is not None and account.held.get(resource, 0) + amount > limit:
                raise self._exceeded(account, resource, limit, amount)
        self._hold(resource, amount)

    def refund(self, resource: Resource, amount: float) -> None:
        """Give back what was charged and not used."""
        for account in self._lineage():
            account.held[resource] = account.held.get(resource, 0) - amount

    def remaining(self, resource: Resource) -> float | None:
        """How much of a resource can still be charged; None is unbounded."""
        left: float | None = None
        for account in self._lineage():
            limit = getattr(account.quota, resource)
            if limit is not None:
                room = limit - account.held.get(resource, 0)
                left = room if left is None else min(left, room)
        return left

    def reserve_up_to(self, resource: Resource, amount: N) -> N:
        """Charge as much of `amount` as the quotas allow and return it.

        Raises: SyscallError("quota_exceeded") when nothing is left.
        """
        left = self.remaining(resource)
        granted = amount if left is None else min(amount, type(amount)(left))
        if granted <= 0:
            self.charge(resource, amount)  # refuses, with the full account of the shortage
        # Not checked again: of seconds, what is left and what is held may not sum to the limit.
        self._hold(resource, granted)
        return granted

    def snapshot(self, tokens_under_way: int = 0) -> Accounting:
        """The use so far as a value, with tokens out that are not settled yet."""
        return Accounting(
            syscalls=self.syscalls,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out + tokens_under_way,
            tokens_cached=self.tokens_cached,
            queued_s=self.queued_s,
            prefill_s=self.prefill_s,
            decode_s=self.decode_s,
            tool_s=self.tool_s,
            kv_byte_s=self.kv_byte_s,
            kv_bytes=self.kv_bytes,
            children=self.children,
        )

    def _hold(self, resource: Resource, amount: float) -> None:
        for account in self._lineage():
            account.held[resource] = account.held.get(resource, 0) + amount

    def _lineage(self) -> list[Account]:
        lineage: list[Account] = []
        account: Account | None = self
        while account is not None:
            lineage.append(account)
            account = account.parent
        return lineage

    def _exceeded(
        self, account: Account, resource: Resource, limit: float, amount: float
    ) -> SyscallError:
        used = account.held.get(resource, 0)
        unit = _UNITS[resource]
        whose = "this process" if account is self else f"its ancestor {account.pid}"
        return SyscallError(
            "quota_exceeded",
            f"quota {resource} of {whose} is {limit:g} {unit}: {used:g} used or reserved, "
            f"{amount:g} more needed; ask for less, or spawn with Quota({resource}=...) higher",
            quota=resource,
            limit=limit,
            used=used,
            needed=amount,
            pid=account.pid,
        )


def total(accountings: list[Accounting]) -> Accounting:
    """The sum of several accounts."""
    fields = Accounting.model_fields
    return Accounting(**{name: sum(getattr(a, name) for a in accountings) for name in fields})
