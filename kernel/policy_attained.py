"""Short programs first, without knowing which are short: least attained service, in levels.

A program starts at the first level and sinks as it is served. Levels grow by a ratio, so it sinks a
few times in its life, and equals, which are at one level, run one after the other by arrival
instead of taking turns. All generations of a program count together, over its tools and returns.
Source: Luo et al., "Autellix: An Efficient Serving Engine for LLM Agents as General Programs"
(program-level attained service, discretised); the levels are those of multi-level feedback queues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmos.kernel.policy import Arrivals, Entry, PolicyName, PolicySettings

# Programs remembered; beyond that, those that were served longest ago are forgotten: a policy is
# not told that a program is over.
_MOST_PROGRAMS = 10_000


@dataclass(slots=True)
class _Program:
    attained: float = 0.0
    live: int = 0  # generations that are not over
    since: float = 0.0  # the device's service when it was last served or came back


class LeastAttained:
    """The lowest level first; within a level, by program.

    A program that waits while others get `patience` times what it has had starts again at the first
    level and keeps what that gives it: it waits in proportion to what it asks for, and never for
    ever.
    """

    name: PolicyName = "las"

    def __init__(self, settings: PolicySettings | None = None) -> None:
        self._settings = settings or PolicySettings()
        self._arrivals = Arrivals(self._settings.head_start_s)
        self._programs: dict[int, _Program] = {}
        self._service = 0.0  # of all programs

    def level(self, program: int) -> int:
        """A program's level; 0 is the first."""
        known = self._programs.get(program)
        settings = self._settings
        if known is None or known.attained < settings.level_cost or self._is_starved(known):
            return 0
        return 1 + int(math.log(known.attained / settings.level_cost, settings.level_ratio))

    def enter(self, entry: Entry) -> None:
        self._arrivals.enter(entry)
        program = self._programs.get(entry.program)
        if program is None:
            self._forget_some()
            program = self._programs[entry.program] = _Program()
        if program.live == 0:
            program.since = self._service
        program.live += 1

    def served(self, entry: Entry, *, prompt_tokens: int, new_tokens: int) -> None:
        settings, program = self._settings, self._programs[entry.program]
        if self._is_starved(program):
            program.attained = 0.0
        cost = settings.prompt_cost * prompt_tokens + settings.new_cost * new_tokens
        self._service += cost
        program.attained += cost
        program.since = self._service

    def leave(self, entry: Entry) -> None:
        self._arrivals.leave(entry)
        self._programs[entry.program].live -= 1

    def order(self, entries: Sequence[Entry]) -> list[Entry]:
        return sorted(entries, key=self._place)

    def victim(self, waiting: Sequence[Entry], running: Sequence[Entry]) -> Entry | None:
        """The last of the running, if it is a level below the first that waits.

        What takes its place stays until it has itself sunk that far, so a program is preempted at
        most once a level.
        """
        if not waiting or not running:
            return None
        first, last = min(waiting, key=self._place), max(running, key=self._place)
        return last if self.level(first.program) < self.level(last.program) else None

    def _is_starved(self, program: _Program) -> bool:
        if program.live == 0 or program.attained < self._settings.level_cost:
            return False
        return self._service - program.since >= self._settings.patience * program.attained

    def _place(self, entry: Entry) -> tuple[int, float, int, float, int]:
        return (self.level(entry.program), *self._arrivals.place(entry))

    def _forget_some(self) -> None:
        if len(self._programs) < _MOST_PROGRAMS:
            return
        away = [name for name, program in self._programs.items() if not program.live]
        away.sort(key=lambda name: self._programs[name].since)
        for name in away[: len(away) // 2]:
            del self._programs[name]
