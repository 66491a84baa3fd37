"""Programs to simulate, from a file: a list that somebody wrote, or what a kernel recorded.

A list is JSONL, one program a line: when it arrived, in seconds from whatever moment, and its
turns, each a call to the model. All but `turns` with `prompt_tokens` and `new_tokens` can be left
out, and a program is on one line, unlike here:

    {"arrived_s": 0.5, "client": "ann", "nice": 5, "shared_tokens": 40, "turns": [
        {"prompt_tokens": 600, "new_tokens": 48, "wait_s": 2.0},
        {"prompt_tokens": 90, "new_tokens": 48, "is_fresh": true}]}

`prompt_tokens` is what a turn adds to the conversation, or begins it anew with (`is_fresh`);
`wait_s` is the time of tools after it. `shared_tokens` of the first prompt are the same for all
programs.

A kernel's recording is the file that `llmos run --trace FILE` and the shell's `trace FILE` write.
A program is then a process that called the model, or a conversation over HTTP. What the file does
not tell: calls that a process made at once come one after the other here, and a prompt that is
longer than the conversation before it is taken to go on from that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from benchmarks.simulation import Program, Turn
from llmos.syscalls.errors import ConfigError, invalid
from llmos.syscalls.values import JsonObject, Value


class _Turn(Value):
    prompt_tokens: int = Field(ge=1)
    new_tokens: int = Field(ge=1)
    wait_s: float = Field(default=0.0, ge=0)
    is_fresh: bool = False


class _Program(Value):
    turns: tuple[_Turn, ...] = Field(min_length=1)
    arrived_s: float = 0.0
    shared_tokens: int = Field(default=0, ge=0)
    client: str = ""
    nice: int = Field(default=0, ge=-20, le=19)


class _Call(NamedTuple):
    """A generation as a kernel recorded it; times are the kernel's seconds."""

    came_s: float
    ended_s: float
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    client: str
    nice: int


def read_programs(path: Path) -> list[Program]:
    """The programs of a list or of a kernel's recording, the first at time 0, in order of arrival.

    Raises: ConfigError naming the line and the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(str(path), f"cannot be read: {problem}") from problem
    programs = _recorded(path, text)
    if programs is None:
        lines = enumerate(text.splitlines(), 1)
        programs = [_program(f"{path}, line {at}", line) for at, line in lines if line.strip()]
    if not programs:
        raise ConfigError(str(path), "no program in it called a model")
    first_s = min(program.arrived_s for program in programs)
    moved = [replace(program, arrived_s=program.arrived_s - first_s) for program in programs]
    return sorted(moved, key=lambda program: program.arrived_s)


def write_programs(path: Path, programs: Iterable[Program]) -> None:
    """Write a list that `read_programs` reads. Raises: OSError."""
    with path.open("w", encoding="utf-8") as file:
        for program in programs:
            turns = tuple(_Turn(**turn._asdict()) for turn in program.turns)
            line = _Program(
                turns=turns,
                arrived_s=program.arrived_s,
                shared_tokens=program.shared_tokens,
                client=program.client,
                nice=program.nice,
            )
            file.write(line.model_dump_json(exclude_defaults=True) + "\n")


def recorded_programs(trace: JsonObject) -> list[Program]:
    """The programs in a trace that a kernel exported (`Kernel.chrome_trace`)."""
    calls: dict[int, list[_Call]] = {}
    phases = [event for event in trace["traceEvents"] if event.get("cat") == "generate"]
    # What a generation came to is recorded at once: queued, prefill, decode; some take no time.
    for before, event, after in zip([None, *phases], phases, [*phases[1:], None], strict=False):
        if event["name"] == "prefill":
            is_queued = before is not None and before["name"] == "queued" and _meet(before, event)
            is_decoded = after is not None and after["name"] == "decode" and _meet(event, after)
            call = _call(event, before if is_queued else event, after if is_decoded else None)
            calls.setdefault(event["args"]["conversation"], []).append(call)
    return [_told(made) for made in calls.values()]


# --- internals ------------------------------------------------------------------------------------


def _recorded(path: Path, text: str) -> list[Program] | None:
    """The programs of a kernel's recording; None for a text that is something else."""
    try:
        trace = json.loads(text)
    except ValueError:
        return None
    if not isinstance(trace, dict) or "traceEvents" not in trace:
        return None
    try:
        return recorded_programs(trace)
    except (KeyError, TypeError) as problem:
        raise ConfigError(
            str(path), f"this is no recording of a kernel of this version: {problem!r}"
        ) from problem


def _program(where: str, line: str) -> Program:
    try:
        told = _Program.model_validate_json(line)
    except ValidationError as problem:
        raise ConfigError(where, invalid(problem).message) from problem
    turns = [Turn(**dict(turn)) for turn in told.turns]
    return Program(told.arrived_s, turns, told.shared_tokens, told.client, told.nice)


def _call(prefill: Any, first: Any, decode: Any) -> _Call:
    """A call of these phases; of an answer of a single token no decoding is recorded."""
    args, last = prefill["args"], decode or prefill
    return _Call(
        came_s=first["ts"] / 1e6,
        ended_s=(last["ts"] + last["dur"]) / 1e6,
        prompt_tokens=args["prompt"],
        cached_tokens=args["cached"],
        new_tokens=1 if decode is None else max(1, decode["args"]["tokens"]),
        client=args["client"],
        nice=args["nice"],
    )


def _meet(one: Any, next_one: Any) -> bool:
    """Whether a phase of a process ends where another begins, to the microsecond."""
    is_same = (one["pid"], one["tid"]) == (next_one["pid"], next_one["tid"])
    return is_same and abs(one["ts"] + one["dur"] - next_one["ts"]) < 1.0


def _told(calls: Sequence[_Call]) -> Program:
    """The calls of a process or of a conversation as one program."""
    ordered = sorted(calls, key=lambda call: call.came_s)
    first = ordered[0]
    turns: list[Turn] = []
    known_tokens = 0
    for call, later in zip(ordered, [*ordered[1:], None], strict=True):
        is_fresh = call.prompt_tokens <= known_tokens
        added = call.prompt_tokens if is_fresh else call.prompt_tokens - known_tokens
        wait_s = 0.0 if later is None else max(0.0, later.came_s - call.ended_s)
        turns.append(Turn(added, call.new_tokens, wait_s, is_fresh))
        known_tokens = call.prompt_tokens + call.new_tokens
    return Program(first.came_s, turns, first.cached_tokens, first.client, first.nice)
