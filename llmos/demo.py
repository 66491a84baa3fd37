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
import shutil
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

import llmos
from llmos import exits, tables
from llmos.jobs import why
from llmos.live import REFRESH_S, overview
from llmos.rates import remember_rates
from llmos.report import Report, write_report
from llmos.sharing import Sharing
from llmos.syscalls.errors import ConfigError
from llmos.syscalls.results import Exited, KernelInfo
from llmos.terminal import Terminal, signals
from llmos.timeline import read_trace
from llmos.trace_file import VIEWER, write_trace

if TYPE_CHECKING:
    from llmos.agents.handle import OS
    from llmos.config import Config
    from llmos.kernel.kernel import Kernel

PROGRAM = "demo"
_PLAIN_S = 5.0  # between two lines where nobody watches
_LAST_LINES = 6


@dataclass(slots=True)
class _Run:
    """What is known of the run so far."""

    started_s: float
    lines: list[str] = field(default_factory=list[str])
    partial: str = ""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started_s

    def take(self, data: bytes) -> list[str]:
        """New whole lines of the program's output."""
        *whole, self.partial = (self.partial + data.decode("utf-8", errors="replace")).split("\n")
        self.lines += whole
        return whole


def run_demo(
    config: Config,
    folder: Path | None,
    *,
    question: str | None = None,
    out: Path = Path("llmos-demo"),
    as_json: bool = False,
    terminal: Terminal | None = None,
) -> int:
    """Run the demo; returns the exit status. Raises: ConfigError for a folder that is not there."""
    from llmos.logs import log_to_file
    from llmos.pulling import bring_models

    log_to_file(config.home)
    terminal = terminal or Terminal(input_fd=None)
    out = _output_folder(out, config.home)
    files = _given_folder(folder) if folder is not None else own_docs(out / "files")
    bring_models(config, terminal.errors)
    return asyncio.run(_demo(config, files, question, out, as_json, terminal))


async def _demo(
    config: Config,
    files: Path,
    question: str | None,
    out: Path,
    as_json: bool,
    terminal: Terminal,
) -> int:
    from llmos.booting import boot

    async with boot(config) as kernel:
        run = _Run(time.monotonic())
        exited = await _watched(kernel, files, question, run, terminal, is_quiet=as_json)
        seconds = run.seconds
        if exited is None:
            return exits.INTERRUPTED
        info: KernelInfo = await kernel.os.stat()
        remember_rates(config.home, info)
        report = _report(config, files, exited, info, kernel.chrome_trace(), seconds)
        trace_path, report_path = out / "trace.json", out / "report.html"
        write_trace(report.trace, trace_path)
        write_report(report, report_path)
        if as_json:
            value = _as_json(exited, report, trace_path, report_path)
            terminal.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        else:
            _show_end(terminal, exited, report, trace_path, report_path)
        return exits.OK if exited.status == "ok" else exits.FAILED


# --- while it runs --------------------------------------------------------------------------------


async def _watched(
    kernel: Kernel,
    files: Path,
    question: str | None,
    run: _Run,
    terminal: Terminal,
    *,
    is_quiet: bool,
) -> Exited | None:
    """Run the program with somebody watching; None when it was interrupted."""
    init: OS = kernel.os
    keywords: dict[str, Any] = {} if question is None else {"question": question}
    pid = await init.spawn(PROGRAM, str(files), **keywords)
    interrupted = asyncio.Event()
    show = _plain if is_quiet or not terminal.is_interactive else _live
    reading = asyncio.create_task(
        _read(kernel, pid, run, terminal, show is _plain and not is_quiet)
    )
    waiting = asyncio.create_task(init.wait(pid))
    showing = asyncio.create_task(show(init, run, terminal, is_quiet=is_quiet))
    stopping = asyncio.create_task(_stop_when(interrupted, init, pid))
    try:
        with signals({signal.SIGINT: interrupted.set, signal.SIGTERM: interrupted.set}):
            await asyncio.wait({waiting, showing}, return_when=asyncio.FIRST_COMPLETED)
            if showing.done():
                showing.result()  # it only ends by an error
            await reading
            exited = waiting.result()
    finally:
        for task in (showing, stopping, reading, waiting):
            task.cancel()
        await asyncio.gather(showing, stopping, reading, waiting, return_exceptions=True)
    return None if interrupted.is_set() and exited.status == "killed" else exited


async def _stop_when(interrupted: asyncio.Event, init: OS, pid: int) -> None:
    await interrupted.wait()
    await init.signal(pid, "TERM")


async def _read(kernel: Kernel, pid: int, run: _Run, terminal: Terminal, is_printing: bool) -> None:
    async for data in kernel.output(pid):
        for line in run.take(data):
            if is_printing:
                terminal.screen.print(Text(line), soft_wrap=True)


async def _live(init: OS, run: _Run, terminal: Terminal, *, is_quiet: bool) -> None:
    """Redraw the processes until cancelled."""
    with Live(console=terminal.screen, auto_refresh=False, transient=True) as live:
        while True:
            info, processes = await init.stat(), await init.ps()
            agents = [process for process in processes if process.pid != init.pid]
            said = [Text(line, style="dim", no_wrap=True) for line in run.lines[-_LAST_LINES:]]
            size = terminal.screen.size
            lines = size.height - len(said) - 1
            picture = overview(info, agents, lines=lines, width=size.width)
            live.update(Group(picture, Text(), *said), refresh=True)
            await asyncio.sleep(REFRESH_S)


async def _plain(init: OS, run: _Run, terminal: Terminal, *, is_quiet: bool) -> None:
    """A line now and then until cancelled."""
    told_s = 0.0
    while True:
        processes = await init.ps()
        agents = [process for process in processes if process.pid != init.pid]
        if not is_quiet and run.seconds - told_s >= _PLAIN_S:
            told_s = run.seconds
            used = tables.total((await init.stat()).programs.values())
            terminal.screen.print(
                f"{run.seconds:4.0f} s: {_alive(agents)} agents, "
                f"{tables.count(used.tokens_in)} tokens in "
                f"({tables.count(used.tokens_cached)} cached), "
                f"{tables.count(used.tokens_out)} out"
            )
        await asyncio.sleep(REFRESH_S)


def _alive(processes: Iterable[Any]) -> int:
    return sum(process.state not in ("zombie", "dead") for process in processes)


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
        f"({model.driver}, {model.device}), policy {config.policy}",
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


# --- folders --------------------------------------------------------------------------------------


def own_docs(staging: Path) -> Path:
    """A folder with this project's own text: a checkout's docs and README, else the package's code.

    The files are copied to `staging`, so that the agents see one folder and nothing else.
    """
    package = Path(llmos.__file__).parent
    checkout = package.parent
    docs = sorted((checkout / "docs").rglob("*.md"))
    found = [*docs, checkout / "README.md"]
    base = checkout
    if not docs:
        base = package
        found = sorted([*package.rglob("*.md"), *package.rglob("*.py")])
    shutil.rmtree(staging, ignore_errors=True)
    for path in found:
        if path.is_file():
            target = staging / path.relative_to(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return staging


def _given_folder(folder: Path) -> Path:
    path = folder.expanduser().resolve()
    if not path.is_dir():
        raise ConfigError("FOLDER", f"{folder} is not a folder")
    return path


def _output_folder(out: Path, home: Path) -> Path:
    """`out` where it can be written, else a folder of the user's own."""
    for folder in (out.expanduser().absolute(), home / "demo"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise ConfigError("--out", f"neither {out} nor {home / 'demo'} can be written")


__all__ = ["PROGRAM", "own_docs", "run_demo"]
