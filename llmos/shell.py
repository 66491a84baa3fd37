"""The interactive shell, in the same OS process and event loop as the kernel.

A line is parsed (`shell_parser.py`), then run as one of the shell's commands (`shell_commands.py`)
or as a pipeline of programs (`jobs.py`). Without a terminal the same lines come from a script or
`-c`; jobs still running at its end are then waited for.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.input.typeahead import get_typeahead
from prompt_toolkit.output import Output
from rich.text import Text

from llmos.exits import UsageError
from llmos.jobs import FAILED, OK, Jobs, describe, show_outcome
from llmos.shell_commands import ShellCommands
from llmos.shell_parser import Pipeline, ShellSyntaxError, parse, split_words
from llmos.syscalls.errors import SyscallError
from llmos.terminal import Terminal

if TYPE_CHECKING:
    from llmos.kernel.kernel import Kernel

USAGE = 2
PROMPT = "llmos> "
_EXIT_WORDS = ("exit", "quit")


class _Leave(Exception):
    """The person asked to leave."""


class Shell:
    """Runs lines over a kernel; `status` is the exit status of the last one."""

    def __init__(self, kernel: Kernel, terminal: Terminal, *, can_stop: bool = False) -> None:
        self._kernel = kernel
        self._terminal = terminal
        self.jobs = Jobs(kernel, terminal, can_stop=can_stop)
        self.commands = ShellCommands(kernel, terminal, self.jobs)
        self.status = OK

    async def run_line(self, line: str) -> None:
        """Run a line; whatever a person can get wrong is printed and sets `status`."""
        try:
            for pipeline in parse(line):
                self.status = await self._run(pipeline)
        except (ShellSyntaxError, UsageError) as problem:
            self.status = USAGE
            self._complain(str(problem))
        except SyscallError as problem:
            self.status = FAILED
            self._complain(str(problem))

    async def run_script(self, lines: Iterable[str]) -> int:
        """Run lines to their end or `exit`, then wait for background jobs."""
        try:
            for line in lines:
                await self.run_line(line)
        except _Leave:
            await self.jobs.end_all()
        await self.jobs.wait_all()
        self._announce()
        return self.status

    async def interact(self, session: PromptSession[str]) -> int:
        """Prompt, run, repeat, until Ctrl-D or `exit`."""
        self._terminal.screen.print(
            Text("llmos shell: `help` lists commands and programs, Ctrl-D leaves", style="dim")
        )
        async for line in self._lines(session):
            self._terminal.type_ahead(_typed_ahead(session.input))
            try:
                await self.run_line(line)
            except _Leave:
                break
            self._announce()
        await self.jobs.end_all()
        return self.status

    # --- internals --------------------------------------------------------------------------------

    async def _lines(self, session: PromptSession[str]) -> AsyncIterator[str]:
        """Lines until the person leaves; Ctrl-D with jobs alive must be pressed twice."""
        was_warned = False
        while True:
            try:
                yield await session.prompt_async(PROMPT)
                was_warned = False
            except KeyboardInterrupt:
                continue
            except EOFError:
                alive = self.jobs.alive
                if was_warned or not alive:
                    return
                was_warned = True
                listed = "; ".join(describe(job) for job in alive)
                self._complain(f"jobs are alive: {listed}. Ctrl-D again ends them")

    async def _run(self, pipeline: Pipeline) -> int:
        (name, *words), *others = pipeline.stages
        if name in _EXIT_WORDS and not others:
            raise _Leave
        if name in self.commands.table:
            if others or pipeline.is_background:
                raise UsageError(
                    f"{name} is a command of the shell; only programs join pipes and &"
                )
            return await self.commands.run(name, words)
        stages = [_without_run(stage) for stage in pipeline.stages]
        for stage in stages[1:]:
            if stage[0] in self.commands.table:
                raise UsageError(f"{stage[0]} is a command of the shell; it cannot read a pipe")
        job = await self.jobs.start(stages, pipeline.text)
        if pipeline.is_background:
            self._terminal.screen.print(Text(describe(job)))
            return OK
        return await self.commands.foreground(job)

    def _announce(self) -> None:
        for job in self.jobs.announce():
            self._terminal.screen.print(Text(describe(job)))
            show_outcome(job, self._terminal)

    def _complain(self, problem: str) -> None:
        self._terminal.end_line()
        self._terminal.errors.print(Text(f"llmos: {problem}", style="red"), soft_wrap=True)


class ShellCompleter(Completer):
    """Commands and programs first, then what the command takes: pids, jobs, files."""

    def __init__(self, kernel: Kernel, shell: Shell) -> None:
        self._kernel = kernel
        self._shell = shell
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Nothing: the shell completes asynchronously, because pids come from a syscall."""
        return ()

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """What may stand at the cursor."""
        words = split_words(document.text_before_cursor)
        if not words:
            return
        *before, word = words
        if before and before[0] == "run":
            before = before[1:]
        for candidate, about in await self._candidates(before):
            if candidate.startswith(word):
                yield Completion(candidate, start_position=-len(word), display_meta=about)
        if before and self._operands(before[0]) in ("programs", "files"):
            path = Document(word, len(word))
            async for completion in self._paths.get_completions_async(path, complete_event):
                yield completion

    async def _candidates(self, before: list[str]) -> list[tuple[str, str]]:
        commands = self._shell.commands.table
        if not before:
            named = [(name, command.about) for name, command in commands.items()]
            programs = [(name, "program") for name in self._kernel.programs.names()]
            return sorted([*named, *programs, ("run", "start a program"), ("exit", "leave")])
        match self._operands(before[0]):
            case "pids":
                return [(str(info.pid), info.program) for info in await self._kernel.os.ps()]
            case "jobs":
                return [(str(job.number), job.text) for job in self._shell.jobs.alive]
            case "commands":
                programs = [(name, "program") for name in self._kernel.programs.names()]
                return [*((name, command.about) for name, command in commands.items()), *programs]
            case _:
                return []

    def _operands(self, name: str) -> str:
        command = self._shell.commands.table.get(name)
        return command.operands if command else "programs"


async def interactive_shell(
    kernel: Kernel,
    *,
    keyboard: Input | None = None,
    output: Output | None = None,
    terminal: Terminal | None = None,
) -> int:
    """Run the shell for a person; returns the exit status of the last line."""
    keys = keyboard or create_input(sys.stdin)
    screen = terminal or Terminal(input_fd=keys.fileno(), keyboard=keys)
    shell = Shell(kernel, screen, can_stop=True)
    history = kernel.settings.home / "shell_history"
    history.parent.mkdir(parents=True, exist_ok=True)
    session: PromptSession[str] = PromptSession(
        input=keys,
        output=output,
        history=FileHistory(str(history)) if keyboard is None else InMemoryHistory(),
        completer=ShellCompleter(kernel, shell),
        complete_while_typing=False,
        enable_suspend=False,
    )
    return await shell.interact(session)


def _without_run(stage: tuple[str, ...]) -> tuple[str, ...]:
    if stage[0] != "run":
        return stage
    if len(stage) == 1:
        raise UsageError("usage: run PROGRAM [ARG|KEY=VALUE]...")
    return stage[1:]


def _typed_ahead(keyboard: Input) -> bytes:
    """What was typed after the line that is about to run: it is for the program, not the prompt."""
    typed = "".join(press.data for press in get_typeahead(keyboard))
    return typed.replace("\r", "\n").encode()
