"""What the faces show: rich tables made from syscall results, and numbers in words.

Pure functions of values; prints nothing and asks nobody.
"""

from __future__ import annotations

import os
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


def process_table(processes: Iterable[ProcessInfo], *, title: str | None = None) -> Table:
    """A row per process, as `ps` and the live views show it."""
    table = _table("pid", "parent", "program", "state", "waiting on", title=title)
    for name in ("nice", "age", "in", "out", "cached", "kv"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("arguments", no_wrap=True, overflow="ellipsis")
    for info in processes:
        used = info.accounting
        table.add_row(
            str(info.pid),
            str(info.parent),
            Text(info.program),
            Text(info.state, style=STATE_STYLES[info.state]),
            Text(info.waiting_on or ""),
            str(info.nice),
            seconds(info.age_s),
            count(used.tokens_in),
            count(used.tokens_out),
            count(used.tokens_cached),
            size(used.kv_bytes) if used.kv_bytes else "",
            Text(info.args),
        )
    return table


def device_table(devices: Iterable[DeviceInfo], *, title: str | None = None) -> Table:
    """A row per device: what runs on it, how full its KV is, how fast it was."""
    table = _table("device", "driver", "model", "state", title=title)
    for name in ("running", "waiting", "cached", "prefill", "decode", "shared"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("KV in use", no_wrap=True)
    for device in devices:
        table.add_row(
            Text(device.name),
            Text(device.driver),
            Text(device.model),
            Text(device.state + (f": {device.reason}" if device.reason else "")),
            f"{device.running}/{device.sequences}",
            str(device.waiting),
            str(device.cached_sequences),
            rate(device.prefill_tokens_per_s),
            rate(device.decode_tokens_per_s),
            count(device.shared_tokens),
            kv_cell(device),
        )
    return table


def kv_cell(device: DeviceInfo) -> str:
    """A bar and the tokens that a device's KV holds."""
    used, total = device.kv_tokens_used, device.kv_tokens_total
    return f"{bar(used, total)} {count(used)}/{count(total)}"


def accounting_table(programs: Mapping[str, Accounting], *, title: str | None = None) -> Table:
    """A row per program and a sum: where tokens and time went."""
    table = _table("program", title=title)
    for name in ("syscalls", "in", "cached", "out", "queued", "prefill", "decode", "tools"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("KV MiB·s", justify="right", no_wrap=True)
    for name, used in sorted(programs.items()):
        table.add_row(Text(name), *_accounting_cells(used))
    if len(programs) > 1:
        table.add_section()
        table.add_row("all", *_accounting_cells(total(programs.values())), style="bold")
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
    """A row per segment of each context, with what was done to it."""
    table = _table("context", "model", "segment", "state")
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("begins", overflow="ellipsis", no_wrap=True)
    for context in contexts:
        for segment in context.segments:
            table.add_row(
                str(context.context),
                Text(context.model),
                f"{segment.index} {segment.kind}",
                segment.state,
                count(segment.tokens),
                Text(segment.preview),
            )
        table.add_section()
        table.add_row(
            str(context.context),
            Text(context.model),
            "all",
            "; ".join(context.actions),
            f"{count(context.used_tokens)} of {count(context.budget_tokens)}",
            "",
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


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(
        title=title, title_justify="left", box=None, pad_edge=False, header_style="bold dim"
    )
    for name in columns:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    return table


def _accounting_cells(used: Accounting) -> tuple[str, ...]:
    return (
        count(used.syscalls),
        count(used.tokens_in),
        count(used.tokens_cached),
        count(used.tokens_out),
        seconds(used.queued_s),
        seconds(used.prefill_s),
        seconds(used.decode_s),
        seconds(used.tool_s),
        f"{used.kv_byte_s / 2**20:,.1f}",
    )


def _three_digits(amount: float) -> str:
    if amount >= 100:
        return f"{amount:.0f}"
    return f"{amount:.1f}" if amount >= 10 else f"{amount:.2f}"
