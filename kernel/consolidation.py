"""Consolidation: in idle time, what was said is made into facts, and what has faded is forgotten.

A process of the lowest priority that sleeps until no device has had work for a while. It then hands
the user's side of stored dialogues to the program `consolidate`, one namespace at a time and with
the right to that namespace alone, within a budget of tokens and time, and lets unused notes decay.
What is learned from somebody's dialogue is kept on their behalf, and forgotten with the rest.
Both processes are seen in `ps` and end by signals like any other. Refuses to know how facts are
found (`agents/consolidate.py`).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmos.kernel.clock import Clock
from llmos.memory.dialogues import Said, read_mark, write_mark
from llmos.syscalls import calls
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import DeviceInfo, Forgotten
from llmos.syscalls.rights import Capabilities, Quota
from llmos.syscalls.trap import Trap

PROGRAM = "consolidate"
LOWEST = 19
NOTES_AT_ONCE = 64
# What a character of dialogue costs, roughly: a sentence of 40 is asked about in a prompt of 150.
_TOKENS_PER_CHAR = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConsolidationSetting:
    """`idle_s`: how long no device had work before a round. `every_s`: rounds are no nearer.

    A round spends at most `tokens` of prompts and answers and runs at most `wall_s`. `model` None
    is the default one.
    """

    idle_s: float = 60.0
    every_s: float = 600.0
    tokens: int = 50_000
    wall_s: float = 120.0
    model: str | None = None


class Shelf(Protocol):
    """What is asked of the long-term store (`library.py`)."""

    async def said_after(self, mark: int, *, limit: int) -> list[Said]: ...

    async def decay(self) -> Forgotten: ...


class Consolidation:
    """`run` is the process's program; `devices` tells whether anybody else is at work."""

    def __init__(
        self,
        setting: ConsolidationSetting,
        *,
        shelf: Shelf,
        devices: Callable[[], tuple[DeviceInfo, ...]],
        clock: Clock,
        folder: Path,
    ) -> None:
        self._setting = setting
        self._shelf = shelf
        self._devices = devices
        self._clock = clock
        self._folder = folder

    async def run(self, trap: Trap) -> None:
        """Wait for idle time and use it, until the process is ended."""
        setting = self._setting
        quiet_s, steps, next_s = self._clock.now(), -1, self._clock.now()
        while True:
            await trap.call(calls.Sleep(seconds=setting.idle_s / 4))
            now, before = self._clock.now(), steps
            steps = self._steps()
            if steps is None or steps != before:
                quiet_s, steps = now, -1 if steps is None else steps
            elif now - quiet_s >= setting.idle_s and now >= next_s:
                await self._round(trap)
                next_s = self._clock.now() + setting.every_s

    def _steps(self) -> int | None:
        """What the devices have done so far; None while one has work."""
        infos = self._devices()
        if any(info.running or info.waiting for info in infos):
            return None
        return sum(info.steps for info in infos)

    async def _round(self, trap: Trap) -> None:
        """Read what was said since the last round, a namespace after the other; then let decay."""
        try:
            mark = read_mark(self._folder)
            while said := await self._shelf.said_after(mark, limit=NOTES_AT_ONCE):
                said = self._affordable(said)
                if not await self._consolidated(trap, said):
                    break
                mark = said[-1].id
                write_mark(self._folder, mark)
            await self._shelf.decay()
        except SyscallError as problem:  # the next round tries again
            log.warning("consolidation: %s", problem)

    def _affordable(self, said: list[Said]) -> list[Said]:
        """As many of some notes as a budget should be enough for, at least one."""
        costs = itertools.accumulate(_TOKENS_PER_CHAR * len(one.text) for one in said)
        count = sum(cost <= self._setting.tokens for cost in costs)
        return said[: max(1, count)]

    async def _consolidated(self, trap: Trap, said: list[Said]) -> bool:
        """Have some dialogue made into facts; whether all of it was read."""

        def whose(one: Said) -> tuple[str, str]:
            return one.namespace, one.owner or ""

        for (name, owner), notes in itertools.groupby(sorted(said, key=whose), key=whose):
            spawned = await trap.call(self._spawn(name, owner, list(notes)))
            exited = await trap.call(calls.Wait(pid=spawned.pid))
            if exited.status != "ok":
                log.warning("consolidation of %s ended: %s", name, exited.error or exited.signal)
                return False
            value: Any = exited.value
            if not value["is_complete"]:  # out of budget
                # What is left comes in the next round; a note that alone is too dear never would.
                return len(said) == 1
        return True

    def _spawn(self, namespace: str, owner: str, notes: list[Said]) -> calls.Spawn:
        setting = self._setting
        only = frozenset({namespace})
        return calls.Spawn(
            program=PROGRAM,
            kwargs={
                "namespace": namespace,
                "notes": [{"id": note.id, "text": note.text, "at": note.at} for note in notes],
                "whose": owner,
                "model": setting.model,
            },
            capabilities=Capabilities(models=frozenset({"*"}), read=only, write=only),
            quota=Quota(tokens_in=setting.tokens, tokens_out=setting.tokens, wall_s=setting.wall_s),
            nice=LOWEST,
            client=owner,
        )
