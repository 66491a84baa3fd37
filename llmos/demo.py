"""`llmos demo`: many agents at once over real files, seen while they run and explained afterwards.

The agents are `agents/demo.py`; this module boots a kernel around them, draws the processes while
they work, and leaves a trace and a report behind. Nothing shown here is made up: the answer is the
program's value, every figure is the kernel's.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from llmos import tables
from llmos.demo_folders import given_folder, output_folder, own_docs
from llmos.jobs import Job, Jobs, why
from llmos.live import REFRESH_S, overview
from llmos.logs import log_to_file
from llmos.pulling import bring_models
from llmos.rates import remember_rates
from llmos.report import Report, write_report
from llmos.sharing import Sharing
from llmos.syscalls.results import Exited, KernelInfo
from llmos.terminal import Terminal
from llmos.timeline import read_trace
from llmos.trace_file import VIEWER, write_trace

if TYPE_CHECKING:
    from llmos.agents.handle import OS
    from llmos.config import Config
    from llmos.kernel.kernel import Kernel

PROGRAM = "demo"
_PLAIN_S = 5.0  # between two lines where nobody watches
_LAST_LINES = 6


def run_demo(
    config: Config,
    folder: Path | None,
    *,
    question: str | None = None,
    out: Path = Path("llmos-demo"),
    as_json: bool = False,
    terminal: Terminal | None = None,
) -> int:
    """Run the demo; returns the exit status. Raises: UsageError for a folder that is not there."""
    log_to_file(config.home)
    terminal = terminal or Terminal(input_fd=None)
    out = output_folder(out, config.home)
    files = given_folder(folder) if folder is not None else own_docs(config.home / "own-docs")
    bring_models(config, terminal.errors)
    words = [PROGRAM, str(files)]
    if question is not None:
        words.append(f"question={json.dumps(question)}")
    return asyncio.run(_demo(config, words, files, out, as_json, terminal))


async def _demo(
    config: Config, words: list[str], files: Path, out: Path, as_json: bool, terminal: Terminal
) -> int:
    from llmos.booting import boot

    async with boot(config) as kernel:
        started_s = time.monotonic()
        job = await _watched(kernel, words, terminal, is_quiet=as_json)
        seconds = time.monotonic() - started_s
        if job.is_interrupted or job.last is None:
            return job.status
        info: KernelInfo = await kernel.os.stat()
        remember_rates(config.home, info)
        report = _report(config, files, job.last, info, kernel.chrome_trace(), seconds)
        trace_path, report_path = out / "trace.json", out / "report.html"
        write_trace(report.trace, trace_path)
        write_report(report, report_path)
        if as_json:
            value = _as_json(job.last, report, trace_path, report_path)
            terminal.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        else:
            _show_end(terminal, job.last, report, trace_path, report_path)
        return job.status


# --- while it runs --------------------------------------------------------------------------------


async def _watched(kernel: Kernel, words: list[str], terminal: Terminal, *, is_quiet: bool) -> Job:
    """Run the program with somebody watching, until it ends or is interrupted."""
    is_live = terminal.is_interactive and not is_quiet
    terminal.is_muted = is_live or is_quiet
    jobs = Jobs(kernel, terminal)
    job = await jobs.start([words], PROGRAM)
    running = asyncio.create_task(jobs.foreground(job))
    beside = {running}
    if not is_quiet:
        show = _live if is_live else _plain
        beside.add(asyncio.create_task(show(kernel.os, job, terminal)))
    try:
        done, _ = await asyncio.wait(beside, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        terminal.is_muted = False
    return job


async def _live(init: OS, job: Job, terminal: Terminal) -> None:
    """Redraw the processes, and the program's last lines under them, until cancelled."""
    with Live(console=terminal.screen, auto_refresh=False, transient=True) as live:
        while True:
            info, processes = await init.stat(), await init.ps()
            agents = [process for process in processes if process.pid != init.pid]
            told = job.output.decode("utf-8", errors="replace").splitlines()[-_LAST_LINES:]
            size = terminal.screen.size
            picture = overview(info, agents, lines=size.height - _LAST_LINES - 1, width=size.width)
            said = [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in told]
            live.update(Group(picture, Text(), *said), refresh=True)
            await asyncio.sleep(REFRESH_S)


async def _plain(init: OS, job: Job, terminal: Terminal) -> None:
    """A line now and then until cancelled."""
    while True:
        await asyncio.sleep(_PLAIN_S)
        info = await init.stat()
        used = tables.total(info.programs.values())
        alive = sum(info.processes.values()) - info.processes.get("zombie", 0) - 1
        terminal.end_line()
        terminal.screen.print(
            f"{info.uptime_s:4.0f} s: {alive} agents, {tables.count(used.tokens_in)} tokens in "
            f"({tables.count(used.tokens_cached)} cached), {tables.count(used.tokens_out)} out"
        )


# --- at the end -----------------------------------------------------------------------------------


def _report(
    config: Config,
    files: Path,
    exited: Exited,
    info: KernelInfo,
    trace: dict[str, Any],
    seconds: float,
) -> Report:
    value: dict[str, Any] = exited.value if isinstance(exited.value, dict) else {}
    model = config.models[config.default_model]
    return Report(
        title="llmos demo",
        subtitle=f"agents over {_short(files)} on {config.default_model} "
        f"({model.driver}, {model.where}), policy {config.policy}",
        info=info,
        trace=trace,
        seconds=seconds,
        question=value.get("question"),
        answer=value.get("answer") if exited.status == "ok" else why(exited),
        sources=[_source(source) for source in value.get("sources", ())],
        footer=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}. trace.json beside this file opens in {VIEWER}",
    )


def _short(path: Path) -> Path:
    """A path as the person would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _source(source: Any) -> str:
    """A source in one line, whether the program gave a path or more."""
    if isinstance(source, dict):
        return "  ".join(str(part) for part in source.values() if part not in (None, ""))
    return str(source)


def _show_end(
    terminal: Terminal, exited: Exited, report: Report, trace_path: Path, report_path: Path
) -> None:
    screen = terminal.screen
    if exited.status != "ok":
        terminal.errors.print(Text(f"llmos: {why(exited)}", style="red"), soft_wrap=True)
    elif report.answer is not None:
        sources = "\n".join(f"  {number}. {text}" for number, text in enumerate(report.sources, 1))
        body = report.answer.strip() + (f"\n\nsources\n{sources}" if sources else "")
        screen.print(
            Panel(Text(body), title=escape(report.question or "answer"), title_align="left")
        )
    most = read_trace(report.trace).most_at_once
    screen.print(tables.accounting_table(report.info.programs, width=screen.width))
    screen.print()
    screen.print(
        f"{tables.seconds(report.seconds)}; at most {most} agents at once; "
        f"{Sharing.of(report.info).sentence()}",
        soft_wrap=True,
    )
    screen.print(Text(f"trace   {_short(trace_path)}  ({VIEWER} opens it)"), soft_wrap=True)
    screen.print(Text(f"report  {_short(report_path)}"), soft_wrap=True)


def _as_json(exited: Exited, report: Report, trace_path: Path, report_path: Path) -> dict[str, Any]:
    sharing = Sharing.of(report.info)
    return {
        **exited.model_dump(mode="json"),
        "seconds": round(report.seconds, 3),
        "most_at_once": read_trace(report.trace).most_at_once,
        "programs": {name: used.model_dump() for name, used in report.info.programs.items()},
        "sharing": {**sharing._asdict(), "share": sharing.share},
        "trace": str(trace_path),
        "report": str(report_path),
    }
