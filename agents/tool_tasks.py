"""Tasks that one right tool call solves, and the tools for them: what the tool agent learns on.

Owns the tools beside the system's calculator, the tasks of each split and how a call is judged.
Nothing here says what an answer looks like: a task carries the result that the right call has, and
a call is right when its tool is the task's and returns that result.

No sentence (`tool_tasks.toml`), no pair of numbers and no item of the stock is in two splits, so
that what is measured on `dev` and `test` was not learned by heart.
"""

from __future__ import annotations

import random
import tomllib
import zlib
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import Field

from llmos.agents.arithmetic import evaluate
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.tool import Tool, tool
from llmos.syscalls.values import JsonObject

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")

Unit = Literal["kilometres", "miles", "metres", "feet", "kilograms", "pounds", "litres", "gallons"]
Item = Literal[
    "anvil",
    "bolt",
    "broom",
    "bucket",
    "candle",
    "chisel",
    "clamp",
    "drill",
    "file",
    "hammer",
    "hinge",
    "hook",
    "ladder",
    "lamp",
    "nail",
    "paint",
    "pliers",
    "rake",
    "rope",
    "ruler",
    "saw",
    "screw",
    "shovel",
    "tape",
]
Property = Literal["price", "weight", "shelf"]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
Value = Annotated[int, Field(ge=0, le=99_999)]

_IN_SI: Mapping[str, float] = {
    "kilometres": 1000.0,
    "miles": 1609.344,
    "metres": 1.0,
    "feet": 0.3048,
    "kilograms": 1.0,
    "pounds": 0.45359237,
    "litres": 1.0,
    "gallons": 3.785411784,
}
_MEASURES: tuple[tuple[Unit, ...], ...] = (
    ("kilometres", "miles", "metres", "feet"),
    ("kilograms", "pounds"),
    ("litres", "gallons"),
)
_ITEMS: tuple[Item, ...] = get_args(Item)
_PROPERTIES: tuple[Property, ...] = get_args(Property)
_SHARES: tuple[Split, ...] = ("train", "train", "dev", "test")
_DRAWS = 300  # of a kind without anything new: there is no more
_FILE = Path(__file__).with_name("tool_tasks.toml")


# --- tools ----------------------------------------------------------------------------------------


def convert(value: Value, unit: Unit, to: Unit) -> str:
    """Convert a value from one unit to another."""
    if not any(unit in measure and to in measure for measure in _MEASURES):
        raise SyscallError("tool_failed", f"{unit} cannot be converted to {to}")
    return f"{value} {unit} = {value * _IN_SI[unit] / _IN_SI[to]:.6g} {to}"


def days_between(start: Day, end: Day) -> str:
    """Count the days from one date to another."""
    return f"{(_day(end) - _day(start)).days} days from {start} to {end}"


def weekday(date: Day) -> str:
    """Name the day of the week of a date."""
    return f"{date} is a {_day(date):%A}"


def stock(item: Item, field: Property) -> str:
    """Look up an item of the shop."""
    return f"{field} of {item}: {_stock()[item][field]}"


TOOLS: tuple[Tool, ...] = tuple(tool(one) for one in (convert, days_between, weekday, stock))


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as problem:
        raise SyscallError("tool_failed", f"{text} is no date: {problem}") from problem


@cache
def _stock() -> Mapping[str, Mapping[str, str]]:
    draw = random.Random("stock")
    return {
        item: {
            "price": f"{draw.randint(1, 80)}.{draw.randint(0, 9)}0",
            "weight": f"{draw.randint(10, 9000)} grams",
            "shelf": f"{draw.choice('ABCDEF')}{draw.randint(1, 40)}",
        }
        for item in _ITEMS
    }


# --- tasks ----------------------------------------------------------------------------------------


class ToolTask(NamedTuple):
    """A sentence, and the tool and result that a right call has."""

    kind: str
    text: str
    tool: str
    result: str

    def is_solved_by(self, tool: str, result: str) -> bool:
        """Whether a call to `tool` that returned `result` is right."""
        return (tool, result) == (self.tool, self.result)

    def value(self) -> JsonObject:
        return self._asdict()


def tasks(split: Split, count: int, *, seed: int) -> list[ToolTask]:
    """`count` different tasks of a split, equally many of each kind; the same for the same seed.

    A kind with too few different ones gives those that it has, and the others more.
    """
    draw = random.Random(f"{split} {seed}")
    kinds = list(_KINDS)
    found: dict[str, ToolTask] = {}
    turn = 0
    while len(found) < count:
        kind = kinds[turn % len(kinds)]
        new = _new_task(draw, split, kind, found)
        if new is None:
            kinds.remove(kind)
            continue
        found[new.text] = new
        turn += 1
    return list(found.values())


def _new_task(
    draw: random.Random, split: Split, kind: str, found: Mapping[str, ToolTask]
) -> ToolTask | None:
    for _ in range(_DRAWS):
        task = _KINDS[kind](draw, split)
        if task.text not in found:
            return task
    return None


def _fill(draw: random.Random, split: Split, kind: str, **fields: object) -> str:
    return draw.choice(_sentences()[kind][split]).format(**fields)


def _arithmetic(kind: str, sign: str) -> Callable[[random.Random, Split], ToolTask]:
    def make(draw: random.Random, split: Split) -> ToolTask:
        a, b = _numbers(draw, split)
        if kind == "difference" and a < b:
            a, b = b, a
        if kind == "quotient":
            a *= b
        text = _fill(draw, split, kind, a=a, b=b)
        return ToolTask(kind, text, "calculator", evaluate(f"{a}{sign}{b}"))

    return make


def _conversion(draw: random.Random, split: Split) -> ToolTask:
    unit, to = draw.sample(draw.choice(_MEASURES), 2)
    value, _ = _numbers(draw, split)
    text = _fill(draw, split, "convert", a=value, unit=unit, to=to)
    return ToolTask("convert", text, "convert", convert(value, unit, to))


def _period(draw: random.Random, split: Split) -> ToolTask:
    start = _date(draw, split)
    end = start + timedelta(days=draw.randint(2, 400))
    text = _fill(draw, split, "days", start=start, end=end)
    return ToolTask("days", text, "days_between", days_between(str(start), str(end)))


def _weekday(draw: random.Random, split: Split) -> ToolTask:
    start = _date(draw, split)
    text = _fill(draw, split, "weekday", start=start)
    return ToolTask("weekday", text, "weekday", weekday(str(start)))


def _lookup(draw: random.Random, split: Split) -> ToolTask:
    items: list[Item] = [item for i, item in enumerate(_ITEMS) if _SHARES[i % 4] == split]
    item = draw.choice(items)
    field = draw.choice(_PROPERTIES)
    text = _fill(draw, split, "stock", item=item, field=field)
    return ToolTask("stock", text, "stock", stock(item, field))


_KINDS: Mapping[str, Callable[[random.Random, Split], ToolTask]] = {
    "sum": _arithmetic("sum", "+"),
    "difference": _arithmetic("difference", "-"),
    "product": _arithmetic("product", "*"),
    "quotient": _arithmetic("quotient", "/"),
    "convert": _conversion,
    "days": _period,
    "weekday": _weekday,
    "stock": _lookup,
}


def _numbers(draw: random.Random, split: Split) -> tuple[int, int]:
    """Two numbers that only this split has together."""
    while True:
        a, b = draw.randint(3, 999), draw.randint(3, 99)
        if a != b and _split_of(f"{min(a, b)} {max(a, b)}") == split:
            return a, b


def _date(draw: random.Random, split: Split) -> date:
    while True:
        day = date(1950, 1, 1) + timedelta(days=draw.randint(0, 30_000))
        if _split_of(str(day)) == split:
            return day


def _split_of(text: str) -> Split:
    """Which split something belongs to."""
    return _SHARES[zlib.crc32(text.encode()) % 4]


@cache
def _sentences() -> Mapping[str, Mapping[str, list[str]]]:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))
