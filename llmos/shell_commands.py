"""The shell's own commands: one small async method each, found by name in a table.

A command prints to the shell's terminal and returns an exit status. What a person gets wrong raises
`UsageError` or `SyscallError`; the shell prints it and lives on.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from rich.text import Text

from llmos import context_picture, live, tables
from llmos.arguments import usage
from llmos.commands_label import entity_table, label_table
from llmos.exits import UsageError
from llmos.jobs import OK, Job, Jobs, describe, show_outcome
from llmos.shell_learning import ShellLearning
from llmos.syscalls.calls import SignalName
from llmos.syscalls.errors import SyscallError
from llmos.terminal import Terminal
from llmos.trace_file import VIEWER, write_trace

if TYPE_CHECKING:
    from llmos.agents.handle import OS
    from llmos.kernel.kernel import Kernel
    from llmos.syscalls.results import ContextInfo

TRACE_FILE = "llmos-trace.json"
_SHOWN_LABELS = 3
_SIGNALS: Mapping[str, SignalName] = {name: name for name in get_args(SignalName)}
_SIGNAL_NUMBERS: Mapping[str, SignalName] = {"9": "KILL", "15": "TERM", "18": "CONT", "19": "STOP"}

Operands = Literal["programs", "pids", "jobs", "files", "commands", "none"]


class Command(NamedTuple):
    """A command; `operands` says what completion offers after it."""

    usage: str
    about: str
    operands: Operands
    run: Callable[[Sequence[str]], Awaitable[int]]


class ShellCommands:
    """Commands over one kernel, one terminal and one table of jobs."""

    def __init__(self, kernel: Kernel, terminal: Terminal, jobs: Jobs) -> None:
        self._kernel = kernel
        self._os: OS = kernel.os
        self._terminal = terminal
        self._jobs = jobs
        self._learning = ShellLearning(kernel, jobs, self._print)
        self.table: Mapping[str, Command] = {
            "jobs": Command("jobs", "jobs that have not ended", "none", self._list_jobs),
            "fg": Command("fg [JOB]", "bring a job to the foreground", "jobs", self._fg),
            "bg": Command("bg [JOB]", "continue a stopped job in the background", "jobs", self._bg),
            "kill": Command(
                "kill [-STOP|-CONT|-TERM|-KILL] PID|%JOB...", "send a signal", "pids", self._kill
            ),
            "nice": Command(
                "nice N PID...", "set a priority, -20 (first) to 19 (last)", "pids", self._nice
            ),
            "ps": Command("ps", "all processes", "none", self._ps),
            "top": Command("top", "processes and devices, live; q leaves", "none", self._top),
            "mem": Command(
                "mem [PID [FILE.svg]]",
                "large allocations; or the contexts of a process, also as a picture",
                "pids",
                self._mem,
            ),
            "models": Command("models", "models and adapters", "none", self._models),
            "classify": Command(
                "classify MODEL TEXT...", "label a text by a task model", "none", self._classify
            ),
            "tag": Command("tag MODEL TEXT...", "entities in a text", "none", self._tag),
            "devices": Command("devices", "devices and what runs on them", "none", self._devices),
            "tools": Command("tools", "tools that agents may call", "none", self._tools),
            "trace": Command(
                f"trace [FILE={TRACE_FILE}]", "write what happened", "files", self._trace
            ),
            "finetune": Command(
                "finetune DATA FIELD=VALUE...",
                "train a version in the background: name=NAME, objective=..., base=...",
                "files",
                self._learning.finetune,
            ),
            "eval": Command(
                "eval DATA [FIELD=VALUE...]",
                "measure a model on rows: model=NAME, against=[...]",
                "files",
                self._learning.evaluate,
            ),
            "learn": Command(
                "learn FOLDER [FIELD=VALUE...]",
                "a learning loop in the background: practice=PROGRAM, rounds=3",
                "files",
                self._learning.learn,
            ),
            "help": Command(
                "help [COMMAND|PROGRAM]", "this list, or one of it", "commands", self._help
            ),
        }

    async def run(self, name: str, words: Sequence[str]) -> int:
        """Run a command by name. Raises: UsageError, SyscallError."""
        return await self.table[name].run(words)

    # --- jobs -------------------------------------------------------------------------------------

    async def _list_jobs(self, words: Sequence[str]) -> int:
        self._expect("jobs", words, at_most=0)
        for job in self._jobs.alive:
            self._print(describe(job))
        return OK

    async def _fg(self, words: Sequence[str]) -> int:
        self._expect("fg", words, at_most=1)
        job = self._jobs.find(self._job_number("fg", words))
        self._print(job.text)
        return await self.foreground(job)

    async def foreground(self, job: Job) -> int:
        """Give a job the terminal, and say how it ended or that it was stopped."""
        await self._jobs.foreground(job)
        if job.state == "stopped":
            self._terminal.end_line()
            self._print(describe(job))
            return OK
        show_outcome(job, self._terminal)
        return job.status

    async def _bg(self, words: Sequence[str]) -> int:
        self._expect("bg", words, at_most=1)
        job = self._jobs.find(self._job_number("bg", words))
        await self._jobs.signal(job, "CONT")
        self._print(describe(job))
        return OK

    async def _kill(self, words: Sequence[str]) -> int:
        name: SignalName = "TERM"
        if words and words[0].startswith("-"):
            spelled = words[0][1:].upper().removeprefix("SIG")
            found = _SIGNALS.get(spelled) or _SIGNAL_NUMBERS.get(spelled)
            if found is None:
                raise UsageError(f"{words[0]} is not a signal; known: {', '.join(_SIGNALS)}")
            name, words = found, words[1:]
        self._expect("kill", words, at_least=1)
        for word in words:
            if word.startswith("%"):
                await self._jobs.signal(self._jobs.find(self._job_number("kill", [word])), name)
            else:
                await self._os.signal(self._number("kill", word), name)
        return OK

    # --- processes --------------------------------------------------------------------------------

    async def _nice(self, words: Sequence[str]) -> int:
        self._expect("nice", words, at_least=2)
        level = self._number("nice", words[0])
        if not -20 <= level <= 19:
            raise UsageError(f"{level} is no priority; -20 is first, 19 is last")
        for word in words[1:]:
            await self._os.nice(level, pid=self._number("nice", word))
        return OK

    async def _ps(self, words: Sequence[str]) -> int:
        self._expect("ps", words, at_most=0)
        width = self._terminal.screen.width
        self._print(tables.process_table(await self._os.ps(), width=width))
        return OK

    async def _top(self, words: Sequence[str]) -> int:
        self._expect("top", words, at_most=0)
        await live.top(self._os, self._terminal)
        return OK

    # --- memory, models, devices ------------------------------------------------------------------

    async def _mem(self, words: Sequence[str]) -> int:
        self._expect("mem", words, at_most=2)
        if words:
            picture = Path(words[1]) if len(words) > 1 else None
            return await self._mem_of(self._number("mem", words[0]), picture)
        info = await self._os.stat()
        self._print(tables.ledger_table(info.ledger, resident_bytes=info.resident_bytes))
        self._print(await self._store_line())
        return OK

    async def _store_line(self) -> str:
        try:
            store = await self._os.memory_stat()
        except SyscallError as problem:
            if problem.code != "not_available":
                raise
            return f"long-term store: none; {problem.message}"
        return (
            f"long-term store: {tables.count(store.items)} items of {store.dimensions} dimensions, "
            f"index {store.index} {tables.size(store.index_bytes)}, "
            f"database {tables.size(store.database_bytes)}"
        )

    async def _mem_of(self, pid: int, picture: Path | None) -> int:
        found = [info for info in await self._os.ps() if info.pid == pid]
        if not found:
            raise SyscallError("not_found", f"there is no process {pid}", what="process", name=pid)
        owner: OS = self._kernel.handle(pid)
        contexts = [await owner.context_stat(context) for context in found[0].contexts]
        self._print(tables.context_table(contexts))
        if picture is not None:
            await asyncio.to_thread(_write_picture, picture, contexts)
            self._print(f"the windows over time are drawn in {picture}")
        used = found[0].accounting
        self._print(
            f"process {pid} holds {tables.size(used.kv_bytes)} of KV; "
            f"{used.kv_byte_s / 2**20:,.1f} MiB·s so far"
        )
        return OK

    async def _models(self, words: Sequence[str]) -> int:
        self._expect("models", words, at_most=0)
        models = await self._os.model_list()
        self._print(tables.model_table(models, default=self._kernel.settings.default_model))
        return OK

    async def _classify(self, words: Sequence[str]) -> int:
        model, text = self._model_and_text("classify", words)
        found = await self._os.classify(text, model, top_k=_SHOWN_LABELS)
        self._print(label_table([text], found))
        return OK

    async def _tag(self, words: Sequence[str]) -> int:
        model, text = self._model_and_text("tag", words)
        self._print(entity_table(await self._os.tag(text, model)))
        return OK

    def _model_and_text(self, name: str, words: Sequence[str]) -> tuple[str, str]:
        if len(words) < 2:
            raise UsageError(f"usage: {self.table[name].usage}")
        return words[0], " ".join(words[1:])

    async def _devices(self, words: Sequence[str]) -> int:
        self._expect("devices", words, at_most=0)
        width = self._terminal.screen.width
        self._print(tables.device_table((await self._os.stat()).devices, width=width))
        return OK

    async def _tools(self, words: Sequence[str]) -> int:
        self._expect("tools", words, at_most=0)
        specs = await self._os.tool_list()
        rows = [(spec.name, spec.description.partition("\n")[0]) for spec in specs]
        self._print(tables.text_table(("tool", "what it does"), rows))
        return OK

    async def _trace(self, words: Sequence[str]) -> int:
        self._expect("trace", words, at_most=1)
        trace = self._kernel.chrome_trace()
        path = write_trace(trace, words[0] if words else TRACE_FILE)
        self._print(
            f"{tables.count(len(trace['traceEvents']))} events in {path}; {VIEWER} opens it"
        )
        return OK

    async def _help(self, words: Sequence[str]) -> int:
        self._expect("help", words, at_most=1)
        if words:
            command = self.table.get(words[0])
            if command is None:
                self._print(self._program(words[0]))
            else:
                self._print(f"{command.usage}: {command.about}")
            return OK
        rows = [
            ("PROGRAM ARG... KEY=VALUE...", "run a program (run PROGRAM: the same)"),
            ("A | B", "feed the output of A to B"),
            ("A &", "run in the background"),
            *((command.usage, command.about) for command in self.table.values()),
            ("exit", "leave, as Ctrl-D does"),
        ]
        self._print(tables.text_table(("command", "what it does"), rows))
        self._print(f"programs: {', '.join(sorted(self._kernel.programs.names()))}")
        return OK

    def _program(self, name: str) -> str:
        try:
            function = self._kernel.programs.find(name)
        except SyscallError:
            raise UsageError(f"{name!r} is no command or program; `help` lists them") from None
        about = inspect.getdoc(function)
        return f"{usage(name, function)}: {about}" if about else usage(name, function)

    # --- words ------------------------------------------------------------------------------------

    def _expect(
        self, name: str, words: Sequence[str], *, at_least: int = 0, at_most: int | None = None
    ) -> None:
        if len(words) < at_least or (at_most is not None and len(words) > at_most):
            raise UsageError(f"usage: {self.table[name].usage}")

    def _number(self, name: str, word: str) -> int:
        try:
            return int(word)
        except ValueError:
            raise UsageError(f"{word!r} is not a number; usage: {self.table[name].usage}") from None

    def _job_number(self, name: str, words: Sequence[str]) -> int | None:
        return self._number(name, words[0].removeprefix("%")) if words else None

    def _print(self, what: object) -> None:
        self._terminal.screen.print(Text(what) if isinstance(what, str) else what, soft_wrap=False)


def _write_picture(path: Path, contexts: Sequence[ContextInfo]) -> None:
    try:
        path.write_text(context_picture.draw(contexts), encoding="utf-8")
    except OSError as problem:
        raise UsageError(f"{path}: {problem.strerror}") from problem
