"""The commands that boot a kernel for a person: `run`, `shell`, `serve`.

Each brings the missing default models first, so that the first start works without another step.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from llmos import exits
from llmos.booting import boot
from llmos.jobs import Job, Jobs, show_outcome
from llmos.logs import log_to_file
from llmos.pulling import bring_models
from llmos.rates import remember_rates
from llmos.syscalls.results import Accounting, Exited, KernelInfo
from llmos.syscalls.values import JsonObject
from llmos.tables import console, total
from llmos.terminal import Terminal
from llmos.trace_file import write_trace

if TYPE_CHECKING:
    from llmos.config import Config
    from llmos.syscalls.rights import Quota


# --- run ------------------------------------------------------------------------------------------


def run_program(
    config: Config,
    program: str,
    words: Sequence[str],
    *,
    quota: Quota,
    nice: int | None,
    is_reading: bool,
    as_json: bool,
    trace: Path | None,
) -> int:
    """Run a program in the foreground; returns the exit status."""
    log = log_to_file(config.home)
    bring_models(config, console(is_error=True))
    # A program named as module:function is looked for where the person is, as with `python -m`.
    sys.path.insert(0, str(Path.cwd()))
    terminal = Terminal.standard(is_reading=is_reading)
    job = asyncio.run(_run(config, [program, *words], terminal, quota, nice, as_json, trace))
    last = job.last
    if job.is_interrupted or last is None or last.error is None:
        return job.status
    if last.error.code == "failed" and log is not None:
        terminal.errors.print(Text(f"details: {log}", style="dim"), soft_wrap=True)
    return exits.exit_status_of_code(last.error.code)


async def _run(
    config: Config,
    words: Sequence[str],
    terminal: Terminal,
    quota: Quota,
    nice: int | None,
    as_json: bool,
    trace: Path | None,
) -> Job:
    async with boot(config) as kernel:
        terminal.is_muted = as_json
        jobs = Jobs(kernel, terminal)
        job = await jobs.start([words], " ".join(words), quota=quota, nice=nice)
        await jobs.foreground(job)
        info: KernelInfo = await kernel.os.stat()
        remember_rates(config.home, info)
        if trace is not None:
            write_trace(kernel.chrome_trace(), trace)
        terminal.is_muted = False
        if as_json:
            outcome = json.dumps(_outcome(job, total(info.programs.values())), ensure_ascii=False)
            terminal.write(outcome.encode() + b"\n")
        else:
            show_outcome(job, terminal)
        return job


def _outcome(job: Job, used: Accounting) -> JsonObject:
    last = job.last
    assert isinstance(last, Exited)
    outcome: dict[str, Any] = {
        **last.model_dump(mode="json"),
        "output": job.output.decode("utf-8", errors="replace"),
        "accounting": used.model_dump(mode="json"),
    }
    return outcome


# --- shell ----------------------------------------------------------------------------------------


def run_shell(config: Config, line: str | None) -> int:
    """Run the shell on one line, on the lines of a pipe, or with a person."""
    log_to_file(config.home)
    bring_models(config, console(is_error=True))
    sys.path.insert(0, str(Path.cwd()))
    return asyncio.run(_shell(config, line))


async def _shell(config: Config, line: str | None) -> int:
    from llmos.shell import Shell, interactive_shell

    async with boot(config) as kernel:
        if line is not None:
            return await Shell(kernel, Terminal.standard()).run_script([line])
        if sys.stdin.isatty():
            return await interactive_shell(kernel)
        # The script is standard input, so programs have none.
        return await Shell(kernel, Terminal.standard(is_reading=False)).run_script(sys.stdin)


# --- serve ----------------------------------------------------------------------------------------


def run_server(config: Config, host: str, port: int) -> int:
    """Serve HTTP until a signal."""
    from llmos.server import serve

    log_to_file(config.home)
    errors = console(is_error=True)
    bring_models(config, errors)

    def announce(address: str) -> None:
        errors.print(f"llmos serves {address}/v1 (model {config.default_model}); Ctrl-C ends it")

    asyncio.run(serve(config, host, port, on_ready=announce))
    return exits.OK
