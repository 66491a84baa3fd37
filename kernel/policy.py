"""What a scheduling policy is: what it may know, what it is told, what it decides.

A policy orders the generations that want the device and says whether a waiting one should take the
place of one that holds a sequence. It sees `Entry` values and counts of tokens only, so that the
same class runs in the kernel and in a simulation; it has no clock and no chance in it. One policy
serves one device, on that device's thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

PolicyName = Literal["fifo", "round_robin", "priority", "fair", "las", "deadline", "critical_path"]


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


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """The numbers of all policies; each takes those that it needs.

    Service is counted in cost: `prompt_cost` for a prompt token that was computed, `new_cost` for a
    sampled one.
    """

    quantum_tokens: int = 16  # round_robin: a turn, while others wait
    ageing_s: float = 60.0  # priority: a wait that is worth one step of nice
    head_start_s: float = 600.0  # see `Arrivals`
    prompt_cost: float = 1.0
    new_cost: float = 2.0
    level_cost: float = 256.0  # las: what the first level holds
    level_ratio: float = 2.0  # las: how much more the next one holds
    patience: float = 16.0  # las: others' service, per own, after which a program starts again
    takeover_cost: float = 1024.0  # fair: a lead that is worth a preemption
    undated_s: float = 600.0  # deadline: what has none counts as due this long after it came
    margin_s: float = 1.0  # deadline, critical_path: a difference that is worth a preemption


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
        """Which running entry must give up its sequence for a waiting one, if any.

        Whoever asks again with the two exchanged gets None, so that nothing is moved to and fro.
        """
        ...


class Arrivals:
    """When each generation counts as having come: with its program, within limits.

    Users wait for programs, so a program that returns from a tool does not queue behind those that
    came after it. Two limits keep that from holding anybody back for long: the head start over the
    generation's own arrival is bounded, else a program that calls for ever would be ahead of newer
    ones for ever; and only one generation of a program has it at a time, else a program that sends
    many would have the device to itself.
    """

    def __init__(self, head_start_s: float) -> None:
        self._head_start_s = head_start_s
        self._live: Counter[int] = Counter()  # generations by program
        self._late: set[int] = set()  # keys of those without a head start

    def enter(self, entry: Entry) -> None:
        if self._live[entry.program]:
            self._late.add(entry.key)
        self._live[entry.program] += 1

    def leave(self, entry: Entry) -> None:
        self._late.discard(entry.key)
        self._live[entry.program] -= 1
        if not self._live[entry.program]:
            del self._live[entry.program]

    def came_s(self, entry: Entry) -> float:
        """Seconds; fixed when the entry arrives."""
        if entry.key in self._late:
            return entry.arrived_s
        return max(entry.program_arrived_s, entry.arrived_s - self._head_start_s)

    def place(self, entry: Entry) -> tuple[float, int, float, int]:
        """A sort key: by when they came, then by program, then as they arrived."""
        return (self.came_s(entry), entry.program, entry.arrived_s, entry.key)


def is_urgent(policy: Policy, entry: Entry) -> bool:
    """Whether an entry's latency bounds what others get in a step: it asks to be first by `nice`.

    Policies of turns and of arrival alone do not know urgency.
    """
    return entry.nice < 0 and policy.name not in ("fifo", "round_robin")
