"""A kernel's trace as lanes: what each process did when, and what each device got done.

Reads the Chrome trace form that the kernel exports; `timeline_picture.py` draws it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from llmos.syscalls.values import JsonObject

# What a syscall's span means to a reader; calls that take no time worth seeing are left out.
_KINDS: Mapping[str, str] = {
    "queued": "queued",
    "prefill": "prefill",
    "decode": "decode",
    "generate": "generate",
    "embed": "embed",
    "toolcall": "tool",
    "retrieve": "memory",
    "remember": "memory",
    "related": "memory",
    "wait": "waiting",
    "receive": "waiting",
    "read": "waiting",
    "sleep": "waiting",
    "finetune": "learn",
    "evaluate": "learn",
}
# Every kind; what is inside another span comes after it.
KINDS = (
    "waiting",
    "generate",
    "queued",
    "prefill",
    "decode",
    "embed",
    "tool",
    "memory",
    "learn",
)
_PHASES = ("queued", "prefill", "decode")


class Span(NamedTuple):
    kind: str
    name: str
    start_s: float
    end_s: float


@dataclass(slots=True)
class Lane:
    """A process: from birth to death, and what it did."""

    pid: int
    name: str
    start_s: float
    end_s: float
    is_ok: bool = True
    spans: list[Span] = field(default_factory=list[Span])


class Step(NamedTuple):
    """One iteration of a device, and how much it did of each kind: tokens, or texts embedded."""

    start_s: float
    end_s: float
    amounts: Mapping[str, int]


@dataclass(slots=True)
class Timeline:
    """A trace as lanes; times are seconds since the first event."""

    lanes: list[Lane]
    devices: dict[str, list[Step]]
    end_s: float

    @property
    def most_at_once(self) -> int:
        """The largest number of processes alive at one moment."""
        births = [(lane.start_s, 1) for lane in self.lanes]
        deaths = [(lane.end_s, -1) for lane in self.lanes]
        return max(accumulate(change for _, change in sorted(births + deaths)), default=0)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of spans that occur, for a legend."""
        present = {span.kind for lane in self.lanes for span in lane.spans}
        return tuple(kind for kind in KINDS if kind in present)


def read_trace(trace: JsonObject, *, skip: Iterable[int] = (1,)) -> Timeline:
    """The lanes of a Chrome trace, without the processes in `skip` (init by default)."""
    events: list[JsonObject] = trace["traceEvents"]
    process_names: dict[int, str] = {}
    thread_names: dict[tuple[int, int], str] = {}
    timed: list[JsonObject] = []
    for event in events:
        if event["ph"] == "M":
            if event["name"] == "process_name":
                process_names[event["pid"]] = event["args"]["name"]
            elif event["name"] == "thread_name":
                thread_names[event["pid"], event["tid"]] = event["args"]["name"]
        else:
            timed.append(event)
    skipped = {0, *skip}
    shown = [event for event in timed if event["pid"] not in skipped or event["cat"] == "device"]
    if not shown:
        return Timeline([], {}, 0.0)
    origin_s = min(_start_s(event) for event in shown)
    lanes: dict[int, Lane] = {}
    devices: dict[str, list[Step]] = defaultdict(list)
    for event in shown:
        start_s = _start_s(event) - origin_s
        end_s = start_s + event.get("dur", 0.0) / 1e6
        pid = event["pid"]
        if event["cat"] == "device":
            device = thread_names.get((pid, event["tid"]), "device")
            amounts = _amounts(event)
            if amounts:
                devices[device].append(Step(start_s, end_s, amounts))
            continue
        lane = lanes.get(pid)
        if lane is None:
            lane = lanes[pid] = Lane(pid, process_names.get(pid, f"process {pid}"), start_s, end_s)
        lane.start_s, lane.end_s = min(lane.start_s, start_s), max(lane.end_s, end_s)
        if event["cat"] == "process":
            _note_life(lane, event)
            continue
        kind = _KINDS.get(event["name"].lower().replace("_", ""))
        if kind and event["ph"] == "X":
            lane.spans.append(Span(kind, event["name"], start_s, end_s))
    for lane in lanes.values():
        lane.spans = _finest(lane.spans)
    ends = [lane.end_s for lane in lanes.values()]
    ends += [step.end_s for steps in devices.values() for step in steps]
    ordered = sorted(lanes.values(), key=lambda lane: (lane.start_s, lane.pid))
    return Timeline(ordered, dict(devices), max(ends, default=0.0))


# --- internals ------------------------------------------------------------------------------------


def _start_s(event: JsonObject) -> float:
    return event["ts"] / 1e6


def _finest(spans: list[Span]) -> list[Span]:
    """Without the generations whose phases are known: the phases say more."""
    if not any(span.kind in _PHASES for span in spans):
        return spans
    return [span for span in spans if span.kind != "generate"]


def _amounts(event: JsonObject) -> Mapping[str, int]:
    """How much a device did in one span; nothing for what is no work, such as opening."""
    args: Any = event["args"]
    if event["name"] == "embed":
        return {"embed": args.get("texts", 0)}
    return {kind: args[kind] for kind in ("prefill", "decode") if kind in args}


def _note_life(lane: Lane, event: JsonObject) -> None:
    """What birth and death say: the program's name, and whether it ended well."""
    args: Any = event["args"]
    if event["ph"] == "X":
        lane.name = event["name"]
        lane.is_ok = args.get("status", "ok") == "ok"
    elif "program" in args:
        lane.name = args["program"]
