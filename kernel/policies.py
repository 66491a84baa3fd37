"""Which waiting generations come first: small interchangeable classes, pure and device-free.

A policy orders the generations that want the device and says whether a waiting one should take the
place of one that holds a sequence. It sees `Entry` values only, so that the same class runs in the
kernel and in a simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from llmos.syscalls.errors import ConfigError

PolicyName = Literal["fifo", "round_robin", "priority"]


@dataclass(slots=True)
class Entry:
    """What a policy may know of one generation. Times are seconds on one monotonic clock."""

    key: int
    pid: int
    nice: int
    arrived_s: float
    # when it last began to wait for a sequence: its arrival, or its last preemption
    queued_s: float
    # tokens fed or sampled since it was given its sequence
    turn_tokens: int = 0
    # what users wait for: the process below init that this one descends from, or a conversation
    program: int = 0
    program_arrived_s: float = 0.0
    # who is to get a fair share, and how large a one
    client: str = ""
    weight: float = 1.0
    deadline_s: float | None = None  # nobody waits for it after that
    path_s: float = 0.0  # the longest way from here to the end of its task graph


class Policy(Protocol):
    @property
    def name(self) -> PolicyName: ...

    def enter(self, entry: Entry) -> None:
        """A generation has arrived."""
        ...

    def served(self, entry: Entry, *, prompt_tokens: int, new_tokens: int) -> None:
        """A step has computed this much for an entry."""
        ...

    def leave(self, entry: Entry) -> None:
        """A generation is over."""
        ...

    def order(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries, first to serve first."""
        ...

    def victim(self, waiting: Sequence[Entry], running: Sequence[Entry]) -> Entry | None:
        """Which running entry must give up its sequence for a waiting one, if any."""
        ...


class _Stateless:
    """A policy to which arrivals, service and ends are nothing."""

    def enter(self, entry: Entry) -> None:
        pass

    def served(self, entry: Entry, *, prompt_tokens: int, new_tokens: int) -> None:
        pass

    def leave(self, entry: Entry) -> None:
        pass


class Fifo(_Stateless):
    """First come, first served, to the end."""

    name: PolicyName = "fifo"

    def order(self, entries: Sequence[Entry]) -> list[Entry]:
        return sorted(entries, key=lambda entry: (entry.arrived_s, entry.key))

    def victim(self, waiting: Sequence[Entry], running: Sequence[Entry]) -> Entry | None:
        return None


class RoundRobin(_Stateless):
    """Each in turn gets a quantum of tokens while others wait for a sequence."""

    name: PolicyName = "round_robin"

    def __init__(self, quantum_tokens: int) -> None:
        self._quantum_tokens = quantum_tokens

    def order(self, entries: Sequence[Entry]) -> list[Entry]:
        return sorted(entries, key=lambda entry: (entry.queued_s, entry.key))

    def victim(self, waiting: Sequence[Entry], running: Sequence[Entry]) -> Entry | None:
        if not waiting:
            return None
        spent = [entry for entry in running if entry.turn_tokens >= self._quantum_tokens]
        return max(spent, key=lambda entry: (entry.turn_tokens, entry.key), default=None)


class Priority(_Stateless):
    """Lower `nice` first, with ageing.

    Waiting for `ageing_s` is worth one step of `nice`. As all waits grow alike, that is the fixed
    order of `arrived_s + ageing_s * nice`: nothing starves, since a newcomer is ahead of an old
    entry only for a bounded time, and nothing thrashes, since the order never changes.
    """

    name: PolicyName = "priority"

    def __init__(self, ageing_s: float) -> None:
        self._ageing_s = ageing_s

    def order(self, entries: Sequence[Entry]) -> list[Entry]:
        return sorted(entries, key=self._rank)

    def victim(self, waiting: Sequence[Entry], running: Sequence[Entry]) -> Entry | None:
        if not waiting or not running:
            return None
        first, last = min(waiting, key=self._rank), max(running, key=self._rank)
        # A difference of arrival alone is not worth moving state for.
        is_ahead = first.nice < last.nice and self._rank(first) < self._rank(last)
        return last if is_ahead else None

    def _rank(self, entry: Entry) -> tuple[float, int]:
        return (entry.arrived_s + self._ageing_s * entry.nice, entry.key)


def make_policy(name: str, *, quantum_tokens: int = 16, ageing_s: float = 2.0) -> Policy:
    """A policy by name. Raises: ConfigError naming the known ones."""
    match name:
        case "fifo":
            return Fifo()
        case "round_robin":
            return RoundRobin(quantum_tokens)
        case "priority":
            return Priority(ageing_s)
        case _:
            known = ", ".join(get_args(PolicyName))
            raise ConfigError("policy", f"there is no policy {name!r}; choose one of {known}")
