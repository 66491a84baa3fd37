"""What the faces show: rich tables made from syscall results, and numbers in words.

Pure functions of values; prints nothing and asks nobody.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmos.syscalls.results import (
    Accounting,
    ContextInfo,
    DeviceInfo,
    LedgerEntry,
    ModelVersion,
    ProcessInfo,
    ProcessState,
)

_WIDE_COLUMNS = 160  # where nobody's terminal limits a line
_ACTIONS_SHOWN = 4  # of a context: the newest
_NARROW_COLUMNS = 116  # below this, tables leave columns out
STATE_STYLES: Mapping[ProcessState, str] = {
    "new": "dim",
    "ready": "yellow",
    "running": "bold green",
    "waiting_device": "cyan",
    "waiting_tool": "magenta",
    "waiting_ipc": "blue",
    "waiting_child": "blue",
    "sleeping": "dim",
    "stopped": "bold red",
    "zombie": "dim",
    "dead": "dim",
}


def console(*, is_error: bool = False) -> Console:
    """A console whose lines a pipe or file does not cut short."""
    made = Console(stderr=is_error, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _WIDE_COLUMNS
    return made


# --- numbers --------------------------------------------------------------------------------------


def count(number: float) -> str:
    """1234567 as "1,234,567"."""
    return f"{number:,.0f}"


def size(number_bytes: float) -> str:
    """Bytes with a binary unit and three digits: "1.25 GiB"."""
    amount = float(number_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{_three_digits(amount)} {unit}"
        amount /= 1024
    return f"{_three_digits(amount)} TiB"


def seconds(number_s: float) -> str:
    """A duration at a readable precision: "180 µs", "42 ms", "3.1 s", "2 min 05 s"."""
    if number_s == 0:
        return "0 s"
    if number_s < 0.001:
        return f"{number_s * 1e6:.0f} µs"
    if number_s < 1:
        return f"{number_s * 1e3:.0f} ms"
    if number_s < 60:
        return f"{number_s:.1f} s"
    minutes, rest = divmod(round(number_s), 60)
    return f"{minutes} min {rest:02d} s"


def rate(tokens_per_s: float | None) -> str:
    """Tokens a second, or a dash before the first measurement."""
    return "-" if tokens_per_s is None else f"{tokens_per_s:,.0f}/s"


def bar(used: float, total: float, width: int = 12) -> str:
    """A bar of `width` cells; empty when there is nothing to fill."""
    share = min(1.0, used / total) if total else 0.0
    filled = round(share * width)
    return "█" * filled + "░" * (width - filled)


# --- tables ---------------------------------------------------------------------------------------


def process_table(processes: Iterable[ProcessInfo], *, width: int = _WIDE_COLUMNS) -> Table:
    """A row per process, as `ps` and the live views show it; fewer columns where it is narrow."""
    is_narrow = width < _NARROW_COLUMNS
    table = _table("pid") if is_narrow else _table("pid", "parent")
    table.add_column("program", min_width=8)
    table.add_column("state", no_wrap=True)
    if not is_narrow:
        table.add_column("waiting on", min_width=8)
        _numbers(table, "nice", "age")
    _numbers(table, "in", "out", "cached", "kv")
    table.add_column("arguments", min_width=6)
    for info in processes:
        used = info.accounting
        style = STATE_STYLES[info.state]
        cells = [str(info.pid)] if is_narrow else [str(info.pid), str(info.parent)]
        state = info.waiting_on if is_narrow and info.waiting_on else info.state
        middle = [] if is_narrow else [_line(info.waiting_on or ""), str(info.nice)]
        table.add_row(
            *cells,
            _line(info.program),
            _line(state, style=style),
            *middle,
            *([] if is_narrow else [seconds(info.age_s)]),
            count(used.tokens_in),
            count(used.tokens_out),
            count(used.tokens_cached),
            size(used.kv_bytes) if used.kv_bytes else "",
            _line(info.args),
        )
    return table


def device_table(devices: Iterable[DeviceInfo], *, width: int = _WIDE_COLUMNS) -> Table:
    """A row per device: what runs on it, how full its KV is, how fast it was."""
    is_narrow = width < _NARROW_COLUMNS
    table = _table("device") if is_narrow else _table("device", "driver", "model")
    table.add_column("state", min_width=6)
    _numbers(table, "running", "waiting", "prefill", "decode")
    if not is_narrow:
        _numbers(table, "cached", "shared")
    table.add_column("KV in use", no_wrap=True)
    if not is_narrow:
        table.add_column("KV layout")
    for device in devices:
        names = [_line(device.name)]
        if not is_narrow:
            names += [_line(device.driver), _line(device.model)]
        table.add_row(
            *names,
            Text(device.state + (f": {device.reason}" if device.reason else "")),
            f"{device.running}/{device.sequences}",
            str(device.waiting),
            rate(device.prefill_tokens_per_s),
            rate(device.decode_tokens_per_s),
            *([] if is_narrow else [str(device.cached_sequences), count(device.shared_tokens)]),
            kv_cell(device, bar_width=6 if is_narrow else 12),
            *([] if is_narrow else [Text(device.kv_layout or "")]),
        )
    return table


def kv_cell(device: DeviceInfo, *, bar_width: int) -> str:
    """A bar and the tokens that a device's KV holds."""
    used, room = device.kv_tokens_used, device.kv_tokens_total
    return f"{bar(used, room, bar_width)} {count(used)}/{count(room)}" if room else ""


def accounting_table(programs: Mapping[str, Accounting], *, width: int = _WIDE_COLUMNS) -> Table:
    """A row per program and a sum: where tokens and time went."""
    is_narrow = width < _NARROW_COLUMNS
    table = _table()
    table.add_column("program", min_width=8)
    _numbers(table, "in", "cached", "out")
    if not is_narrow:
        _numbers(table, "queued")
    _numbers(table, "prefill", "decode", "tools")
    if not is_narrow:
        _numbers(table, "syscalls", "KV MiB·s")
    for name, used in sorted(programs.items()):
        table.add_row(_line(name), *_accounting_cells(used, is_narrow=is_narrow))
    if len(programs) > 1:
        table.add_section()
        cells = _accounting_cells(total(programs.values()), is_narrow=is_narrow)
        table.add_row("all", *cells, style="bold")
    return table


def total(parts: Iterable[Accounting]) -> Accounting:
    """The sum of several accounts."""
    listed = list(parts)
    sums = {name: sum(getattr(part, name) for part in listed) for name in Accounting.model_fields}
    return Accounting(**sums)


def ledger_table(entries: Iterable[LedgerEntry], *, resident_bytes: int) -> Table:
    """Every large allocation, its owner, and how much of the process they explain."""
    listed = sorted(entries, key=lambda entry: -entry.bytes)
    table = _table("owner", "what")
    table.add_column("size", justify="right", no_wrap=True)
    for entry in listed:
        table.add_row(Text(entry.owner), Text(entry.what), size(entry.bytes))
    named = sum(entry.bytes for entry in listed)
    table.add_section()
    table.add_row("all", "named above", size(named))
    table.add_row("process", "resident", size(resident_bytes))
    return table


def context_table(contexts: Sequence[ContextInfo]) -> Table:
    """Each context: a row per segment in its window, how many have left it, and what was done."""
    table = _table("context", "segment", "why")
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("begins", overflow="ellipsis", no_wrap=True)
    for context in contexts:
        number = str(context.context)
        window = [one for one in context.segments if one.state == "in_window"]
        left = Counter(one.state.replace("_", " ") for one in context.segments)
        del left["in window"]
        for segment in window:
            table.add_row(
                number,
                f"{segment.index} {segment.kind}",
                segment.reason or "",
                count(segment.tokens),
                Text(segment.preview),
            )
        table.add_section()
        gone = ", ".join(f"{count(number)} {state}" for state, number in left.items())
        table.add_row(
            number,
            "all",
            Text("; ".join((*context.actions[-_ACTIONS_SHOWN:], *([gone] if gone else ())))),
            f"{count(context.used_tokens)} of {count(context.budget_tokens)}",
            Text(f"{context.model}, policy {context.policy}"),
        )
    return table


def model_table(models: Iterable[ModelVersion], *, default: str | None) -> Table:
    """A row per model or adapter that the kernel knows; a star marks the default."""
    table = _table("model", "kind", "base", "metrics", "path")
    for model in models:
        star = " *" if model.name == default or model.is_promoted else ""
        table.add_row(
            Text(model.name + star),
            model.kind,
            Text(model.base or ""),
            Text(", ".join(f"{name} {value:.4g}" for name, value in model.metrics.items())),
            Text(model.path or ""),
        )
    return table


def text_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of plain words."""
    table = _table(*columns)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


# --- internals ------------------------------------------------------------------------------------


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for name in columns:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    return table


def _numbers(table: Table, *columns: str) -> None:
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)


def _line(text: str, style: str = "") -> Text:
    """Text that is cut, not wrapped, where its column is too narrow."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _accounting_cells(used: Accounting, *, is_narrow: bool) -> tuple[str, ...]:
    tokens = (count(used.tokens_in), count(used.tokens_cached), count(used.tokens_out))
    times = (seconds(used.prefill_s), seconds(used.decode_s), seconds(used.tool_s))
    if is_narrow:
        return (*tokens, *times)
    kv = f"{used.kv_byte_s / 2**20:,.1f}"
    return (*tokens, seconds(used.queued_s), *times, count(used.syscalls), kv)


def _three_digits(amount: float) -> str:
    if amount >= 100:
        return f"{amount:.0f}"
    return f"{amount:.1f}" if amount >= 10 else f"{amount:.2f}"
