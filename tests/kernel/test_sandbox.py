"""Python in a process of its own: limits hold, walls stand, nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.kernel.sandbox import Limits, PythonRun, python, run_python
from llmos.syscalls.errors import SyscallError

QUICK = Limits(cpu_s=1, wall_s=3.0)
SHORT = Limits(wall_s=0.6)


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test's temporary folders are its own, and gone when it ends."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert list(tmp_path.glob("llmos-python-*")) == []


@pytest.fixture(scope="module")
def has_namespaces() -> bool:
    return "network" in run("pass").walls


def run(code: str, limits: Limits = QUICK, *, is_isolated: bool = True) -> PythonRun:
    return asyncio.run(run_python(code, limits=limits, is_isolated=is_isolated))


@pytest.fixture(params=[True, False], ids=["isolated", "not isolated"])
def is_isolated(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_a_program_prints_and_ends(is_isolated: bool) -> None:
    result = run("print('olé', 6 * 7)", is_isolated=is_isolated)
    assert (result.output, result.ending, result.status) == ("olé 42\n", "exited", 0)
    assert result.walls[:2] == ("limits", "no_new_privileges")
    assert is_isolated or "network" not in result.walls


def test_it_starts_in_an_empty_place() -> None:
    code = "import os\nprint(os.listdir('.'), sorted(os.environ))"
    assert run(code).output.startswith("['program.py'] ['LC_CTYPE']")


def test_an_exception_is_shown_without_our_frames() -> None:
    result = run("def f():\n    return 1 / 0\nf()")
    assert result.status == 1
    assert result.output.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert 'File "program.py", line 2, in f' in result.output
    assert "sandbox_child" not in result.output


@pytest.mark.parametrize(
    ("code", "status"), [("import sys; sys.exit(3)", 3), ("def f(:", 1), ("x = '\udc80'", 0)]
)
def test_the_exit_status_is_the_programs(code: str, status: int) -> None:
    result = run(code)
    assert (result.ending, result.status) == ("exited", status)


def test_memory_is_bounded(is_isolated: bool) -> None:
    result = run("bytearray(2 * 1024 ** 3)", is_isolated=is_isolated)
    assert "MemoryError" in result.output


def test_the_size_of_a_file_is_bounded(is_isolated: bool) -> None:
    code = "open('big', 'wb').write(bytes(64 * 1024 * 1024))"
    assert "File too large" in run(code, is_isolated=is_isolated).output


def test_the_number_of_open_files_is_bounded() -> None:
    assert "Too many open files" in run("files = [open('program.py') for _ in range(99)]").output


def test_processor_time_is_bounded() -> None:
    result = run("while True: pass", Limits(cpu_s=1, wall_s=60.0))
    assert (result.ending, result.status) == ("killed", 137)


def test_wall_time_is_bounded_and_what_was_printed_is_kept(is_isolated: bool) -> None:
    code = "import time\nprint('so far', flush=True)\ntime.sleep(60)"
    result = run(code, SHORT, is_isolated=is_isolated)
    assert (result.output, result.ending) == ("so far\n", "timeout")


def test_output_is_bounded_while_it_is_read() -> None:
    result = run("while True: print('x' * 1000)", Limits(output_bytes=5000, wall_s=60.0))
    assert result.ending == "too_much_output"
    assert 4000 < len(result.output) <= 5000


def test_there_is_no_network(has_namespaces: bool) -> None:
    if not has_namespaces:
        pytest.skip("this machine forbids user namespaces")
    code = "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)"
    assert "Network is unreachable" in run(code).output


def test_what_a_program_left_running_ends_with_it(has_namespaces: bool) -> None:
    if not has_namespaces:
        pytest.skip("this machine forbids user namespaces")
    mark = f"left-by-{os.getpid()}-{time.monotonic_ns()}"
    code = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'],\n"
        "                 start_new_session=True)\n"
        "print('done')"
    )
    assert run(code).output == "done\n"
    assert with_word(mark) == []


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """A FIFO: a program opens it to say that it runs, and the test reads it to wait for that."""
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    return fifo


def run_until_killed(started: Path) -> str:
    return f"open({str(started)!r}, 'w').close()\nwhile True: pass"


def test_a_cancelled_run_is_killed(started: Path, is_isolated: bool) -> None:
    async def main() -> None:
        code = run_until_killed(started)
        task = asyncio.create_task(run_python(code, is_isolated=is_isolated))
        await asyncio.to_thread(started.read_bytes)
        assert sandboxes_of(os.getpid())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert sandboxes_of(os.getpid()) == []


def test_the_program_dies_with_the_kernel(started: Path, tmp_path: Path) -> None:
    script = (
        "import asyncio\n"
        "from llmos.kernel.sandbox import run_python\n"
        f"asyncio.run(run_python({run_until_killed(started)!r}))\n"
    )
    kernel = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    started.read_bytes()
    (sandbox,) = sandboxes_of(kernel.pid)
    gone = os.pidfd_open(sandbox)
    kernel.kill()
    kernel.wait()
    assert select.select([gone], [], [], 10.0)[0]
    os.close(gone)
    for folder in tmp_path.glob("llmos-python-*"):  # a kernel that was killed tidies nothing
        shutil.rmtree(folder)


def test_the_tool_shows_what_was_printed() -> None:
    assert asyncio.run(python("print(42)")) == "42\n"
    assert "printed nothing" in asyncio.run(python("42"))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("1 / 0", "exit status 1\nTraceback(.|\n)*ZeroDivisionError"),
        ("print('x' * 10**6)", "printed more than 65536 bytes"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
    ],
)
def test_the_tool_fails_with_the_reason(code: str, reason: str) -> None:
    with pytest.raises(SyscallError, match=reason) as caught:
        asyncio.run(python(code))
    assert caught.value.code == "tool_failed"


def test_a_temporary_folder_that_cannot_be_made_is_a_storage_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(SyscallError, match="temporary folder") as caught:
        run("print(1)")
    assert caught.value.code == "storage"


# --- processes of the machine ---------------------------------------------------------------------


def sandboxes_of(kernel: int) -> list[int]:
    """The sandbox processes that a kernel's process has started."""
    return [pid for pid in with_word("sandbox_child") if parent_of(pid) == kernel]


def with_word(word: str) -> list[int]:
    """The processes with a word in their command line."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                if word.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def parent_of(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None
