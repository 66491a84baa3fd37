"""What a learning loop has done, as lines that are only ever added to a file.

Each line is one finished stage. Reading them again gives the state, so that a loop which was ended
anywhere goes on behind its last whole line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal

from llmos.agents.handle import OS
from llmos.agents.learn_statistics import Interval
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.values import JsonObject, Value

FILE = "loop.jsonl"
Verdict = Literal["promoted", "discarded", "refused", "too_little_data"]
Ending = Literal["rounds", "seconds", "tokens", "patience"]


class Started(Value):
    """The loop began, or went on, with this plan."""

    event: Literal["started"] = "started"
    plan: JsonObject
    at: str


class Measured(Value):
    """A version's outcomes on the held-out tasks, 0 or 1 each; `version` None is the bare base."""

    event: Literal["measured"] = "measured"
    round: int
    version: str | None
    outcomes: tuple[float, ...]
    kinds: tuple[str, ...]  # of the tasks, in the same order
    seconds: float
    tokens: int


class Collected(Value):
    """What a round found: of `tried` tasks `solved`, and what rows the filter kept of it."""

    event: Literal["collected"] = "collected"
    round: int
    tried: int
    attempts: int
    solved: int
    rows: int
    by_kind: dict[str, int]
    all_rows: int  # of this and the earlier rounds
    untrained_rows: int  # that no version has seen yet
    seconds: float
    tokens: int


class TrainedVersion(Value):
    """A version was trained on all rows so far."""

    event: Literal["trained"] = "trained"
    round: int
    version: str
    base: str | None
    rows: int
    losses: tuple[tuple[int, float], ...]
    seconds: float
    tokens: int


class Judged(Value):
    """How a round ended; without a version it was not trained. `why` is a gate's refusal."""

    event: Literal["judged"] = "judged"
    round: int
    verdict: Verdict
    version: str | None = None
    against: str | None = None
    gain: tuple[float, float, float] | None = None  # value and bounds
    why: str = ""

    def interval(self) -> Interval | None:
        return None if self.gain is None else Interval(*self.gain)


class Ended(Value):
    """The loop ended by its plan."""

    event: Literal["ended"] = "ended"
    why: Ending


Event = Started | Measured | Collected | TrainedVersion | Judged | Ended
_EVENTS: dict[str, type[Event]] = {
    "started": Started,
    "measured": Measured,
    "collected": Collected,
    "trained": TrainedVersion,
    "judged": Judged,
    "ended": Ended,
}


class Record:
    """The events of one loop, in memory and in `FOLDER/loop.jsonl`."""

    def __init__(self, os: OS, folder: str, events: Iterable[Event]) -> None:
        self._os = os
        self._path = f"{folder}/{FILE}"
        self.events = list(events)

    @classmethod
    async def open(cls, os: OS, folder: str) -> Record:
        """Read what an earlier run left; a last line that was cut is taken off.

        Raises: SyscallError("storage") for a damaged line before the last.
        """
        path = f"{folder}/{FILE}"
        try:
            text = await os.read_text(path)
        except SyscallError as problem:
            if problem.code != "not_found":
                raise
            return cls(os, folder, [])
        whole, _, cut = text.rpartition("\n")
        if cut:
            await os.write_text(path, f"{whole}\n" if whole else "")
        return cls(os, folder, [_read(line, path) for line in whole.split("\n") if line])

    async def add(self, event: Event) -> None:
        """Keep an event; it is in the file when this returns."""
        fd = await self._os.open(self._path, "a")
        try:
            await self._os.write(event.model_dump_json() + "\n", fd=fd)
        finally:
            await self._os.close(fd)
        self.events.append(event)

    # --- what the events say ----------------------------------------------------------------------

    @property
    def plan(self) -> JsonObject | None:
        """The newest plan that the loop ran by."""
        return next((e.plan for e in reversed(self.events) if isinstance(e, Started)), None)

    @property
    def rounds(self) -> int:
        """How many rounds are over."""
        return sum(isinstance(event, Judged) for event in self.events)

    @property
    def seconds(self) -> float:
        """How long the stages that are over took together."""
        return sum(e.seconds for e in self.events if isinstance(e, _COSTLY))

    @property
    def tokens(self) -> int:
        """Tokens generated and trained on so far."""
        return sum(e.tokens for e in self.events if isinstance(e, _COSTLY))

    @property
    def discarded(self) -> int:
        """How many versions in a row were not promoted, the newest last."""
        count = 0
        for event in reversed(self.events):
            if isinstance(event, Judged) and event.verdict == "promoted":
                break
            count += isinstance(event, Judged) and event.verdict in ("discarded", "refused")
        return count

    @property
    def in_use(self) -> str | None:
        """The version that the loop promoted last; None before any."""
        for event in reversed(self.events):
            if isinstance(event, Judged) and event.verdict == "promoted":
                return event.version
        return None

    def measured(self, version: str | None) -> Measured | None:
        """The newest measurement of a version."""
        found = (e for e in reversed(self.events) if isinstance(e, Measured))
        return next((event for event in found if event.version == version), None)

    def collected(self, number: int) -> Collected | None:
        """What a round collected, if it is that far."""
        found = (e for e in self.events if isinstance(e, Collected))
        return next((event for event in found if event.round == number), None)

    def trained(self, number: int) -> TrainedVersion | None:
        """The version that a round trained, if it is that far."""
        found = (e for e in self.events if isinstance(e, TrainedVersion))
        return next((event for event in found if event.round == number), None)

    def last_trained_rows(self) -> int:
        """On how many rows the newest version was trained."""
        found = (e.rows for e in reversed(self.events) if isinstance(e, TrainedVersion))
        return next(found, 0)


_COSTLY = (Measured, Collected, TrainedVersion)


def _read(line: str, path: str) -> Event:
    try:
        fields = json.loads(line)
        return _EVENTS[fields["event"]].model_validate(fields, strict=False)
    except (ValueError, KeyError, TypeError) as problem:
        raise SyscallError(
            "storage", f"{path} is damaged: {line[:80]!r} is no event of a loop", path=path
        ) from problem
