"""Policies whose order is a sort key: first come, turns, priority, deadlines, critical paths.

An entry's rank is fixed when it arrives (for round robin, when it begins to wait). That gives two
things at once: nothing thrashes, as a preempted entry cannot overtake the one that took its place,
and nothing starves, as a newcomer is ahead of an old entry only for a bounded time.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmos.kernel.policy import Arrivals, Entry, PolicyName, PolicySettings


class Ranked:
    """Lower `rank` first, then by program. To it service is nothing."""

    def __init__(self, settings: PolicySettings | None = None) -> None:
        self.settings = settings or PolicySettings()
        self.arrivals = Arrivals(self.settings.head_start_s)

    def rank(self, entry: Entry) -> float:
        """Seconds at which the entry counts as having come."""
        return self.arrivals.came_s(entry)

    def enter(self, entry: Entry) -> None:
        self.arrivals.enter(entry)

    def served(self, entry: Entry, *, prompt_tokens: int, new_tokens: int) -> None:
        pass

    def leave(self, entry: Entry) -> None:
        self.arrivals.leave(entry)

    def order(self, entries: Sequence[Entry]) -> list[Entry]:
        return sorted(entries, key=self._place)

    def victim(self, waiting: Sequence[Entry], running: Sequence[Entry]) -> Entry | None:
        if not waiting or not running:
            return None
        first, last = min(waiting, key=self._place), max(running, key=self._place)
        return last if self.is_worth_moving(first, last) else None

    def is_worth_moving(self, first: Entry, last: Entry) -> bool:
        """Whether the first to wait shall take the place of the last that runs."""
        return False

    def _place(self, entry: Entry) -> tuple[float, int, float, int]:
        return (self.rank(entry), entry.program, entry.arrived_s, entry.key)


class Fifo(Ranked):
    """The program that came first is served first; whoever runs, runs to the end."""

    name: PolicyName = "fifo"


class RoundRobin(Ranked):
    """Each in turn gets a quantum of tokens while others wait for a sequence."""

    name: PolicyName = "round_robin"

    def rank(self, entry: Entry) -> float:
        return entry.queued_s

    def victim(self, waiting: Sequence[Entry], running: Sequence[Entry]) -> Entry | None:
        if not waiting:
            return None
        quantum = self.settings.quantum_tokens
        spent = [entry for entry in running if entry.turn_tokens >= quantum]
        return max(spent, key=lambda entry: (entry.turn_tokens, entry.key), default=None)


class Priority(Ranked):
    """Lower `nice` first, with ageing: waiting for `ageing_s` is worth one step of `nice`."""

    name: PolicyName = "priority"

    def rank(self, entry: Entry) -> float:
        return self.arrivals.came_s(entry) + self.settings.ageing_s * entry.nice

    def is_worth_moving(self, first: Entry, last: Entry) -> bool:
        # A difference of arrival alone is not worth moving state for.
        return first.nice < last.nice and self.rank(first) < self.rank(last)


class Deadline(Ranked):
    """Earliest deadline first; what has none counts as due `undated_s` after it came."""

    name: PolicyName = "deadline"

    def rank(self, entry: Entry) -> float:
        if entry.deadline_s is not None:
            return entry.deadline_s
        return self.arrivals.came_s(entry) + self.settings.undated_s

    def is_worth_moving(self, first: Entry, last: Entry) -> bool:
        return first.deadline_s is not None and self.rank(
            first
        ) + self.settings.margin_s < self.rank(last)


class CriticalPath(Ranked):
    """The longest way to the end of its task graph first.

    A second of path weighs as much as a second of waiting: within a graph, and among graphs that
    came together, the longest path is first; an older graph is overtaken only by a path that is
    longer by more than the time between them.
    """

    name: PolicyName = "critical_path"

    def rank(self, entry: Entry) -> float:
        return self.arrivals.came_s(entry) - entry.path_s

    def is_worth_moving(self, first: Entry, last: Entry) -> bool:
        margin = self.settings.margin_s
        return first.path_s > last.path_s + margin and self.rank(first) + margin < self.rank(last)
