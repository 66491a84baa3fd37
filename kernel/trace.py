"""What happened, in order: a bounded ring of events with live subscribers.

Events are kept as plain tuples, because one is recorded for every syscall; they become
`TraceEvent` values when somebody reads them. The export is the Chrome trace format, which
Perfetto opens. Event-loop thread only.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Collection
from typing import Any, Literal, NamedTuple

from llmos.kernel.clock import Clock
from llmos.syscalls.results import TraceEvent, TraceEvents
from llmos.syscalls.values import JsonObject

Phase = Literal["X", "i", "C"]
_SUBSCRIBER_EVENTS = 10_000


class _Record(NamedTuple):
    name: str
    category: str
    phase: Phase
    ts_s: float
    dur_s: float
    pid: int
    track: str
    args: JsonObject | None


class Subscription:
    """A live reader of events; `dropped` counts those that came while it was too slow."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[TraceEvent] = asyncio.Queue(_SUBSCRIBER_EVENTS)
        self.dropped = 0

    def offer(self, event: TraceEvent) -> None:
        try:
            self.queue.put_nowait(event)
        except asyncio.QueueFull:
            self.dropped += 1


class Tracer:
    def __init__(self, clock: Clock, *, capacity: int) -> None:
        self._clock = clock
        self._boot_s = clock.now()
        self._ring: deque[_Record] = deque(maxlen=capacity)
        self._recorded = 0
        self._subscribers: set[Subscription] = set()

    def span(
        self,
        name: str,
        category: str,
        *,
        started_s: float,
        ended_s: float,
        pid: int,
        track: str = "",
        args: JsonObject | None = None,
    ) -> None:
        """Record something that took time; both ends are on the kernel's clock."""
        self._record(_Record(name, category, "X", started_s, ended_s - started_s, pid, track, args))

    def mark(
        self, name: str, category: str, *, pid: int, track: str = "", args: JsonObject | None = None
    ) -> None:
        """Record something that happened now."""
        self._record(_Record(name, category, "i", self._clock.now(), 0.0, pid, track, args))

    def newest(self, limit: int, *, pids: Collection[int] | None = None) -> TraceEvents:
        """The newest events, oldest first; of some processes, or of all."""
        found: list[TraceEvent] = []
        for record in reversed(self._ring):
            if pids is None or record.pid in pids:
                found.append(self._event(record))
                if len(found) == limit:
                    break
        found.reverse()
        return TraceEvents(events=tuple(found), dropped=self._recorded - len(self._ring))

    async def follow(self) -> AsyncIterator[TraceEvent]:
        """Events as they come, until the caller stops reading."""
        subscription = Subscription()
        self._subscribers.add(subscription)
        try:
            while True:
                yield await subscription.queue.get()
        finally:
            self._subscribers.discard(subscription)

    def chrome(self, process_names: dict[int, str]) -> JsonObject:
        """All kept events in the Chrome trace format; processes are named by their spawn events."""
        names = dict(process_names)
        for record in self._ring:
            if record.name == "spawn" and record.args is not None:
                names[record.pid] = f"{record.args['program']} ({record.pid})"
        events: list[JsonObject] = [
            {"name": "process_name", "ph": "M", "pid": pid, "tid": 0, "args": {"name": name}}
            for pid, name in names.items()
        ]
        tracks: dict[tuple[int, str], int] = {}
        for record in self._ring:
            key = (record.pid, record.track)
            if key not in tracks:
                tracks[key] = len(tracks)
                name = record.track or "syscalls"
                events.append(
                    {
                        "name": "thread_name",
                        "ph": "M",
                        "pid": record.pid,
                        "tid": tracks[key],
                        "args": {"name": name},
                    }
                )
            event: JsonObject = {
                "name": record.name,
                "cat": record.category,
                "ph": record.phase,
                "ts": (record.ts_s - self._boot_s) * 1e6,
                "pid": record.pid,
                "tid": tracks[key],
                "args": record.args or {},
            }
            if record.phase == "X":
                event["dur"] = record.dur_s * 1e6
            else:
                event["s"] = "t"
            events.append(event)
        return {"traceEvents": events, "displayTimeUnit": "ms"}

    def bytes(self) -> int:
        """An estimate of the ring's memory."""
        if not self._ring:
            return 0
        newest: Any = self._ring[-1]
        return len(self._ring) * (sys.getsizeof(newest) + 120)

    def _record(self, record: _Record) -> None:
        self._ring.append(record)
        self._recorded += 1
        if self._subscribers:
            event = self._event(record)
            for subscription in self._subscribers:
                subscription.offer(event)

    def _event(self, record: _Record) -> TraceEvent:
        return TraceEvent(
            name=record.name,
            category=record.category,
            phase=record.phase,
            ts_us=(record.ts_s - self._boot_s) * 1e6,
            dur_us=record.dur_s * 1e6,
            pid=record.pid,
            track=record.track,
            args=record.args or {},
        )
