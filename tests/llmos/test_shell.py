"""The shell: jobs, pipes, signals and commands; by script and by simulated keys."""

from __future__ import annotations

import asyncio
import io
import os as posix
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output.plain_text import PlainTextOutput
from rich.console import Console

from llmos.agents.handle import OS
from llmos.drivers.scripted import Scripted
from llmos.kernel.kernel import Kernel
from llmos.kernel.settings import ModelSetting, Settings
from llmos.shell import PROMPT, Shell, ShellCompleter, interactive_shell
from llmos.syscalls.errors import Killed, SyscallError
from llmos.terminal import Terminal

# --- programs -------------------------------------------------------------------------------------


async def say(os: OS, *words: Any, **more: Any) -> None:
    await os.print(*words, *(f"{key}={value!r}" for key, value in more.items()))


async def upper(os: OS) -> None:
    await os.write((await os.read_input()).upper())


async def value(os: OS, what: Any) -> Any:
    return what


async def say_and_return(os: OS, what: Any, said: Any = None) -> Any:
    await os.print("thinking")
    await os.print(said or what)
    return what


async def fail(os: OS) -> None:
    raise SyscallError("denied", "as it was told")


async def wait_for_mail(os: OS) -> Any:
    await os.print("waiting")
    return (await os.receive()).body


async def clean_up(os: OS) -> None:
    await os.print("ready")
    try:
        await os.receive()
    except Killed:
        await os.print("cleaned up")
        raise


async def answer_lines(os: OS) -> str:
    await os.print("talk to me")
    while True:
        data = await os.read()
        if data.is_eof and not data.data:
            return "goodbye"
        for line in data.text.splitlines():
            await os.print(f"you said {line}")


PROGRAMS: dict[str, Any] = {
    "say": say,
    "upper": upper,
    "value": value,
    "say_and_return": say_and_return,
    "fail": fail,
    "wait_for_mail": wait_for_mail,
    "clean_up": clean_up,
    "answer_lines": answer_lines,
}

# --- fixtures -------------------------------------------------------------------------------------


class Screen:
    """What a person would see."""

    def __init__(self, input_fd: int | None = None) -> None:
        self._raw = io.BytesIO()
        self._seen = 0
        self.file = io.TextIOWrapper(self._raw, encoding="utf-8", write_through=True)
        console = Console(file=self.file, width=200, highlight=False)
        self.terminal = Terminal(input_fd=input_fd, screen=console, errors=console)

    @property
    def text(self) -> str:
        return self._raw.getvalue().decode()

    async def shows(self, text: str) -> None:
        """Wait until the screen shows a text after what was waited for before."""
        while (found := self.text.find(text, self._seen)) < 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
        self._seen = found + len(text)


@asynccontextmanager
async def booted(home: Path) -> AsyncIterator[Kernel]:
    kernel = Kernel(Settings(home=home, models={}, default_model=None), bind=OS, programs=PROGRAMS)
    try:
        yield kernel
    finally:
        await kernel.stop()


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run lines; returns the exit status and what the screen showed."""

    def run(*lines: str) -> tuple[int, str]:
        async def scenario() -> tuple[int, str]:
            screen = Screen()
            async with booted(tmp_path) as kernel:
                status = await Shell(kernel, screen.terminal).run_script(lines)
                return status, screen.text

        return asyncio.run(asyncio.wait_for(scenario(), 20))

    return run


Script = Callable[..., tuple[int, str]]

# --- programs and jobs ----------------------------------------------------------------------------


def test_a_line_runs_a_program_with_json_arguments(script: Script) -> None:
    status, shown = script("say 1 true 'two words' [3] key=0.5")
    assert status == 0
    assert shown == "1 True two words [3] key=0.5\n"


def test_run_is_the_long_form(script: Script) -> None:
    assert script("run say hello") == (0, "hello\n")


def test_a_returned_value_is_printed(script: Script) -> None:
    assert script("value text") == (0, "text\n")
    assert script("""value '{"a": [1]}'""") == (0, '{\n  "a": [\n    1\n  ]\n}\n')


def test_a_value_is_not_printed_where_the_program_has_said_it(script: Script) -> None:
    assert script("say_and_return 'the answer'") == (0, "thinking\nthe answer\n")
    assert script("say_and_return 'another answer' said='the answer'")[1] == (
        "thinking\nthe answer\nanother answer\n"
    )
    assert script("say_and_return '[1]'") == (0, "thinking\n[1]\n")


def test_a_pipe_feeds_the_next_program(script: Script) -> None:
    assert script("say hello | upper") == (0, "HELLO\n")
    assert script("say a | upper | upper") == (0, "A\n")


def test_a_failing_program_says_why_and_the_shell_goes_on(script: Script) -> None:
    status, shown = script("fail", "say still here")
    assert "fail (pid 2) failed: denied: as it was told" in shown
    assert shown.endswith("still here\n")
    assert status == 0
    assert script("fail")[0] == 1


def test_an_unknown_program_names_the_nearest_one(script: Script) -> None:
    status, shown = script("sya hello")
    assert status == 2
    assert "did you mean say?" in shown


def test_the_first_stage_is_killed_when_the_second_does_not_exist(script: Script) -> None:
    status, shown = script("wait_for_mail | nothing", "ps")
    assert "there is no program 'nothing'" in shown
    assert "wait_for_mail" not in shown.partition("pid")[2]
    assert status == 0


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("say 'open", "the quote ' at column 5 is never closed"),
        ("| say", "there is no program before '|'"),
        ("say |", "there is no program after the last '|'"),
        ("ps | upper", "ps is a command of the shell"),
        ("say x | ps", "ps is a command of the shell"),
        ("fg x", "'x' is not a number; usage: fg [JOB]"),
        ("kill", "usage: kill"),
        ("kill -NONE 2", "-NONE is not a signal"),
        ("nice 40 2", "40 is no priority"),
        ("run", "usage: run PROGRAM"),
        ("help nothing", "'nothing' is no command or program"),
        ("value", "value: missing a required argument: 'what'; usage: value WHAT"),
    ],
)
def test_misuse_is_told_in_one_line(script: Script, line: str, complaint: str) -> None:
    status, shown = script(line)
    assert status == 2
    assert complaint in shown


@pytest.mark.parametrize("line", ["kill 99", "nice 1 99", "mem 99", "fg 7", "bg"])
def test_a_process_or_job_that_is_not_there_is_an_error_of_the_command(
    script: Script, line: str
) -> None:
    status, shown = script(line)
    assert status == 1
    assert "llmos: not_found" in shown


def test_background_output_is_kept_until_fg_shows_it(tmp_path: Path) -> None:
    async def scenario() -> str:
        screen = Screen()
        async with booted(tmp_path) as kernel:
            shell = Shell(kernel, screen.terminal)
            await shell.run_line("wait_for_mail &")
            (job,) = shell.jobs
            while not job.unseen_bytes:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert "waiting" not in screen.text
            foreground = asyncio.create_task(shell.run_line("fg"))
            await screen.shows("waiting")
            await kernel.os.send(job.pids[0], "you have mail")
            await foreground
            return screen.text

    shown = asyncio.run(asyncio.wait_for(scenario(), 20))
    assert shown.startswith("[1] running  wait_for_mail  (pid 2)\n")
    assert shown.endswith("waiting\nyou have mail\n")


def test_a_script_waits_for_its_background_jobs(script: Script) -> None:
    status, shown = script("say from behind &")
    assert status == 0
    assert shown.endswith("[1] done  say from behind  (pid 2)\nfrom behind\n")


def test_exit_ends_what_runs(script: Script) -> None:
    _, shown = script("clean_up &", "exit", "say not reached")
    assert "not reached" not in shown


def test_stop_and_continue_by_kill_and_by_bg(script: Script) -> None:
    _, shown = script("wait_for_mail &", "kill -STOP %1", "jobs", "ps", "bg 1", "jobs", "kill %1")
    assert "[1] stopped" in shown
    assert "stopped" in shown
    assert shown.index("[1] stopped") < shown.rindex("[1] running")


# --- commands -------------------------------------------------------------------------------------


def test_ps_shows_every_process(script: Script) -> None:
    _, shown = script("wait_for_mail &", "nice 7 2", "ps", "kill 2")
    row = next(line for line in shown.splitlines() if line.startswith("2 "))
    assert "wait_for_mail" in row
    assert " 7 " in row


def test_top_without_a_person_is_one_picture(script: Script) -> None:
    status, shown = script("top")
    assert status == 0
    assert "policy priority" in shown
    assert "init" in shown


def test_mem_models_devices_tools_and_help_answer(script: Script) -> None:
    for line in ("mem", "devices", "tools", "help", "help kill", "models"):
        status, shown = script(line)
        assert (status, shown != "") == (0, True), line
    assert "programs: answer_lines, clean_up" in script("help")[1]
    assert script("help say_and_return") == (0, "say_and_return WHAT [SAID]\n")


async def talk(os: OS) -> None:
    context = await os.context_open("Say hello.", budget_tokens=400)
    await os.generate("And once more.", context=context, max_tokens=8)
    await os.print("talked")
    await os.receive()


def test_mem_of_a_process_shows_its_contexts_and_draws_them(tmp_path: Path) -> None:
    picture = tmp_path / "window.svg"
    model = ModelSetting("scripted", "scripted", "scripted", Scripted)

    async def scenario() -> str:
        screen = Screen()
        settings = Settings(home=tmp_path, models={"scripted": model}, default_model="scripted")
        kernel = Kernel(settings, bind=OS, programs={"talk": talk})
        try:
            shell = Shell(kernel, screen.terminal)
            await shell.run_line("talk &")
            (job,) = shell.jobs
            while not job.unseen_bytes:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await shell.run_line(f"mem {job.pids[0]} {picture}")
            await shell.run_line(f"mem {job.pids[0]} {tmp_path}")
        finally:
            await kernel.stop()
        return screen.text

    shown = asyncio.run(asyncio.wait_for(scenario(), 20))
    assert "And once more." in shown
    assert "of 400" in shown
    assert "policy default" in shown
    assert f"llmos: {tmp_path}: Is a directory" in shown
    assert picture.read_text().startswith("<svg")


def test_trace_writes_what_perfetto_reads(script: Script, tmp_path: Path) -> None:
    target = tmp_path / "trace.json"
    status, shown = script("say x", f"trace {target}")
    assert status == 0
    assert str(target) in shown
    assert '"traceEvents"' in target.read_text()


def test_a_trace_that_cannot_be_written_is_an_error_of_the_command(script: Script) -> None:
    status, shown = script("trace /nowhere/at/all")
    assert status == 1
    assert "storage: /nowhere/at/all cannot be written" in shown


# --- a person -------------------------------------------------------------------------------------


class Person:
    """Types on a keyboard and reads the screen."""

    def __init__(self, keys: PipeInput, screen: Screen, kernel: Kernel) -> None:
        self.kernel = kernel
        self._keys = keys
        self._screen = screen

    def types(self, text: str) -> None:
        self._keys.send_text(text)

    async def sees(self, text: str) -> None:
        await self._screen.shows(text)

    async def enters(self, line: str) -> None:
        """Waits for the prompt, then types a line."""
        await self.sees(PROMPT.strip())
        self.types(f"{line}\n")

    def presses(self, key: signal.Signals) -> None:
        """Ctrl-C and Ctrl-Z as the terminal turns them into signals for a foreground program."""
        posix.kill(posix.getpid(), key)


def converse(home: Path, scenario: Callable[[Person], Awaitable[None]]) -> tuple[int, str]:
    """Run the interactive shell with a person; returns the exit status and the screen."""

    async def run() -> tuple[int, str]:
        with create_pipe_input() as keys:
            screen = Screen(input_fd=keys.fileno())
            screen.terminal.keyboard = keys
            async with booted(home) as kernel:
                talking = asyncio.create_task(scenario(Person(keys, screen, kernel)))
                status = await interactive_shell(
                    kernel,
                    keyboard=keys,
                    output=PlainTextOutput(screen.file),
                    terminal=screen.terminal,
                )
                await talking
                return status, screen.text

    return asyncio.run(asyncio.wait_for(run(), 20))


def test_typed_lines_reach_the_program_in_the_foreground(tmp_path: Path) -> None:
    async def scenario(person: Person) -> None:
        await person.enters("answer_lines")
        await person.sees("talk to me")
        person.types("hello\n")
        await person.sees("you said hello")
        person.presses(signal.SIGINT)
        await person.enters("exit")

    status, _ = converse(tmp_path, scenario)
    assert status == 130


def test_what_was_typed_ahead_of_a_program_is_for_the_program(tmp_path: Path) -> None:
    async def scenario(person: Person) -> None:
        await person.enters("answer_lines\nhello there")
        await person.sees("you said hello there")
        person.presses(signal.SIGINT)
        await person.enters("exit")

    converse(tmp_path, scenario)


def test_ctrl_c_ends_the_foreground_program_and_not_the_shell(tmp_path: Path) -> None:
    async def scenario(person: Person) -> None:
        await person.enters("clean_up")
        await person.sees("ready")
        person.presses(signal.SIGINT)
        await person.sees("cleaned up")
        await person.enters("value 'the shell lives'")
        await person.sees("\nthe shell lives\n")
        await person.sees(PROMPT.strip())
        person.types("\x04")

    status, _ = converse(tmp_path, scenario)
    assert status == 0


def test_ctrl_z_stops_the_foreground_program_and_fg_continues_it(tmp_path: Path) -> None:
    async def scenario(person: Person) -> None:
        await person.enters("wait_for_mail")
        await person.sees("waiting")
        person.presses(signal.SIGTSTP)
        await person.sees("[1] stopped  wait_for_mail  (pid 2)")
        await person.enters("fg")
        await person.kernel.os.send(2, "you have mail")
        await person.sees("you have mail")
        await person.enters("exit")

    status, _ = converse(tmp_path, scenario)
    assert status == 0


def test_ctrl_d_warns_about_jobs_once(tmp_path: Path) -> None:
    async def scenario(person: Person) -> None:
        await person.enters("wait_for_mail &")
        await person.sees(PROMPT.strip())
        person.types("\x04")
        await person.sees("jobs are alive: [1] running  wait_for_mail  (pid 2)")
        await person.sees(PROMPT.strip())
        person.types("\x04")

    converse(tmp_path, scenario)


def test_ctrl_c_at_the_prompt_gives_a_new_line(tmp_path: Path) -> None:
    async def scenario(person: Person) -> None:
        await person.sees(PROMPT.strip())
        person.types("value forgotten\x03")
        await person.enters("value kept")
        await person.sees("\nkept\n")
        await person.enters("exit")

    _, shown = converse(tmp_path, scenario)
    assert "\nforgotten\n" not in shown


def test_completion_knows_commands_programs_pids_jobs_and_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()

    async def scenario() -> None:
        async with booted(tmp_path) as kernel:
            shell = Shell(kernel, Screen().terminal)
            completer = ShellCompleter(kernel, shell)

            async def offered(line: str) -> set[str]:
                document = Document(line, len(line))
                found = completer.get_completions_async(document, CompleteEvent())
                return {completion.text async for completion in found}

            assert {"kill", "say", "top", "run", "exit"} <= await offered("")
            assert await offered("wa") == {"wait_for_mail"}
            assert await offered("say x | up") == {"upper"}
            assert await offered("run val") == {"value"}
            assert await offered("help ni") == {"nice"}
            assert await offered("kill 1") == {"1"}
            await shell.run_line("wait_for_mail &")
            assert await offered("kill ") == {"1", "2"}
            assert await offered("fg ") == {"1"}
            assert await offered(f"upper {tmp_path}/no") == {"tes.txt"}
            assert await offered("say 'open") == set()
            await shell.jobs.end_all()

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_models_text_cannot_drive_the_terminal() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    terminal = Terminal(input_fd=None, screen=Console(file=file, force_terminal=True))
    terminal.write("\x1b[2Jplain\ttext \u00e9\n".encode())
    raw = file.buffer
    assert isinstance(raw, io.BytesIO)
    assert raw.getvalue().decode() == "[2Jplain\ttext \u00e9\n"
