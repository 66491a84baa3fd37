"""A run as one HTML file that needs no network: answer, figures, timeline, accounting, devices.

Everything that came from models, files or programs is escaped: the page holds no script.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from llmos.sharing import Sharing
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import Accounting, KernelInfo
from llmos.syscalls.values import JsonObject
from llmos.tables import count, rate, seconds, size, total
from llmos.timeline import KINDS, Timeline, read_trace
from llmos.timeline_picture import draw

_LEGEND: Mapping[str, str] = {
    "waiting": "waiting for a process or a message",
    "generate": "generating",
    "queued": "queued",
    "prefill": "prefill (reading the prompt)",
    "decode": "decode (writing the answer)",
    "embed": "embedding",
    "tool": "tool",
    "memory": "long-term store",
    "learn": "training",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What a run has to say for itself. `sources` are what the answer rests on."""

    title: str
    subtitle: str
    info: KernelInfo
    trace: JsonObject
    seconds: float
    question: str | None = None
    answer: str | None = None
    sources: Sequence[str] = ()
    footer: str = ""


def write_report(report: Report, path: Path) -> None:
    """Write the page. Raises: SyscallError("storage")."""
    try:
        path.write_text(render(report), encoding="utf-8")
    except OSError as problem:
        raise SyscallError(
            "storage", f"{path} cannot be written: {problem.strerror}", path=str(path)
        ) from problem


def render(report: Report) -> str:
    """The page as text."""
    timeline = read_trace(report.trace)
    page = Template(files("llmos").joinpath("report.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=escape(report.title),
        subtitle=escape(report.subtitle),
        kind_rules="\n".join(f".timeline .{kind} {{ fill: var(--{kind}); }}" for kind in KINDS),
        figures=_figures(report, timeline),
        answer=_answer(report),
        legend=_legend(timeline),
        timeline=draw(timeline),
        accounting=_accounting(report.info.programs),
        devices=_devices(report.info),
        ledger=_ledger(report.info),
        footer=escape(report.footer),
    )


# --- sections -------------------------------------------------------------------------------------


def _figures(report: Report, timeline: Timeline) -> str:
    used = total(report.info.programs.values())
    sharing = Sharing.of(report.info)
    figures = [
        (seconds(report.seconds), "from question to answer"),
        (str(len(timeline.lanes)), "processes in all"),
        (str(timeline.most_at_once), "at once, at most"),
        (count(used.tokens_in), "prompt tokens"),
        (f"{sharing.share:.0%}", "of them not computed again"),
        (count(used.tokens_out), "tokens written"),
    ]
    if sharing.saved_s is not None:
        figures.append((seconds(sharing.saved_s), "of prefill saved"))
    return "".join(
        f'<div class="figure"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
        for value, what in figures
    )


def _answer(report: Report) -> str:
    if report.answer is None:
        return ""
    question = f'<p class="question">{escape(report.question)}</p>' if report.question else ""
    sources = "".join(f"<li><code>{escape(source)}</code></li>" for source in report.sources)
    listed = f'<ol class="sources">{sources}</ol>' if sources else ""
    return (
        f'<section><h2>Answer</h2>{question}<p class="answer">{escape(report.answer)}</p>'
        f"{listed}</section>"
    )


def _legend(timeline: Timeline) -> str:
    return "".join(
        f'<span><i style="background:var(--{kind})"></i>{escape(_LEGEND[kind])}</span>'
        for kind in (*timeline.kinds, *_device_kinds(timeline))
    )


def _device_kinds(timeline: Timeline) -> Sequence[str]:
    """What only device lanes show."""
    steps = [step for steps in timeline.devices.values() for step in steps]
    worked = {kind for step in steps for kind in step.amounts}
    return [kind for kind in KINDS if kind in worked and kind not in timeline.kinds]


def _accounting(programs: Mapping[str, Accounting]) -> str:
    head = ("program", "syscalls", "tokens in", "cached", "tokens out")
    head += ("queued", "prefill", "decode", "tools", "KV MiB·s")
    rows = [(name, *_cells(used)) for name, used in sorted(programs.items())]
    last = ("all", *_cells(total(programs.values()))) if len(rows) > 1 else None
    return _table(head, rows, last=last)


def _cells(used: Accounting) -> tuple[str, ...]:
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


def _devices(info: KernelInfo) -> str:
    rows = [
        (
            device.name,
            device.driver,
            device.state,
            count(device.steps),
            rate(device.prefill_tokens_per_s),
            rate(device.decode_tokens_per_s),
            count(device.shared_tokens),
            f"{count(device.kv_tokens_used)} of {count(device.kv_tokens_total)}"
            if device.kv_tokens_total
            else "-",
        )
        for device in info.devices
        if device.state != "closed"
    ]
    head = ("device", "driver", "state", "steps", "prefill", "decode", "tokens shared", "KV tokens")
    return _table(head, rows, texts=3)


def _ledger(info: KernelInfo) -> str:
    entries = sorted(info.ledger, key=lambda entry: -entry.bytes)
    rows = [(entry.owner, entry.what, size(entry.bytes)) for entry in entries]
    named = sum(entry.bytes for entry in entries)
    last = (
        "all",
        f"named above, of {size(info.resident_bytes)} that the process holds",
        size(named),
    )
    return _table(("owner", "what", "size"), rows, last=last, texts=2)


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    last: Sequence[str] | None = None,
    texts: int = 1,
) -> str:
    """A table whose first `texts` columns are words and the others numbers."""
    body = "".join(f"<tr>{_row('td', row, texts)}</tr>" for row in rows)
    if last is not None:
        body += f'<tr class="sum">{_row("td", last, texts)}</tr>'
    return f"<table><thead><tr>{_row('th', head, texts)}</tr></thead><tbody>{body}</tbody></table>"


def _row(tag: str, cells: Sequence[str], texts: int) -> str:
    return "".join(
        f'<{tag} class="{"text" if index < texts else "number"}">{escape(cell)}</{tag}>'
        for index, cell in enumerate(cells)
    )
