"""The command line: exit statuses, one-line errors, JSON for scripts, pipes and signals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llmos.cli import app

AGENTS = """
async def main(os, word="nothing", times=1):
    for _ in range(times):
        await os.print("said", word)
    return {"word": word}

async def count(os):
    return len(await os.read_input())

async def boom(os):
    return 1 / 0

async def denied(os):
    await os.spawn("agents:main", capabilities=None)
    await os.open("/etc/passwd-of-nobody/x")

async def think(os, n=8):
    return (await os.generate("Say something", max_tokens=n)).text

async def wrong_model(os):
    await os.generate("Hello", model="nobody")

async def hang(os):
    await os.print("hanging")
    await os.receive()

async def flood(os):
    while True:
        await os.print("x" * 1000)
        await os.sleep(0)

def not_async(os):
    return 1
"""


@pytest.fixture(autouse=True)
def _folder(scripted_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with agents and a scripted model."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "agents", raising=False)
    (scripted_folder / "agents.py").write_text(AGENTS)


def llmos(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, arguments, input=stdin, catch_exceptions=False)


# --- help and usage -------------------------------------------------------------------------------


def test_help_lists_the_commands_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from llmos.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = {'torch', 'pydantic', 'transformers', 'rich', 'prompt_toolkit', 'numpy'}\n"
        "print(status, sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "0 []"
    for command in ("run", "demo", "shell", "serve", "pull", "models", "devices", "doctor"):
        assert f"  {command} " in done.stdout


def test_importing_llmos_alone_is_cheap_and_its_names_load_when_used() -> None:
    code = (
        "import sys, llmos\n"
        "assert 'pydantic' not in sys.modules\n"
        "assert llmos.user('hi').text == 'hi'\n"
        "assert not hasattr(llmos, 'nothing')\n"
        "assert set(llmos.__all__) <= set(dir(llmos))\n"
        "assert all(getattr(llmos, name) is not None for name in llmos.__all__)\n"
        "assert callable(llmos.boot) and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_the_packages() -> None:
    assert llmos("--version").stdout.startswith("llmos 0.")


@pytest.mark.parametrize(
    "arguments",
    [(), ("nothing",), ("run",), ("run", "agents.py", "--nice", "99"), ("serve", "--port", "x")],
)
def test_a_wrong_command_line_is_status_2(arguments: tuple[str, ...]) -> None:
    assert llmos(*arguments).exit_code == 2


# --- run ------------------------------------------------------------------------------------------


def test_run_streams_output_or_prints_the_value() -> None:
    result = llmos("run", "agents.py", "tea", "times=2")
    assert result.exit_code == 0
    assert result.stdout == "said tea\nsaid tea\n"
    silent = llmos("run", "agents.py", "tea", "times=0")
    assert silent.stdout == '{\n  "word": "tea"\n}\n'


def test_run_finds_programs_by_module_and_by_file_and_function() -> None:
    assert llmos("run", "agents:count", stdin="12345").stdout == "0\n"
    assert llmos("run", "agents.py:count").stdout == "0\n"


def test_run_generates_with_the_configured_model() -> None:
    result = llmos("run", "agents.py:think", "n=4")
    assert (result.exit_code, len(result.stdout.strip()) > 0) == (0, True)


def test_json_gives_one_object_with_value_output_and_accounting() -> None:
    result = llmos("run", "agents.py", "tea", "--json")
    outcome = json.loads(result.stdout)
    assert outcome["status"] == "ok"
    assert outcome["value"] == {"word": "tea"}
    assert outcome["output"] == "said tea\n"
    assert outcome["accounting"]["syscalls"] >= 1


def test_a_program_that_raises_is_status_1_with_one_line_and_a_log() -> None:
    result = llmos("run", "agents.py:boom")
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    assert "raised ZeroDivisionError" in result.stderr
    assert "details: " in result.stderr
    assert "Traceback" in Path("state/llmos.log").read_text()


def test_a_failure_as_json_is_status_1_too() -> None:
    result = llmos("run", "agents.py:boom", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["code"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("run", "nobody"), 2, "there is no program 'nobody'"),
        (("run", "nobody.py"), 2, "there is no such file"),
        (("run", "agents.py:nobody"), 2, "no async function 'nobody'"),
        (("run", "agents.py:not_async"), 2, "no async function 'not_async'"),
        (("run", "agents.py", "a", "1", "more"), 2, "usage: agents.py [WORD] [TIMES]"),
        (("run", "agents.py", "nothing=1"), 2, "unexpected keyword argument 'nothing'"),
        (("run", "agents.py:wrong_model"), 4, "unknown_model"),
        (("run", "agents.py:denied"), 1, "failed: "),
        (("run", "agents.py", "--model", "nobody"), 3, "'nobody' is not a configured model"),
        (("run", "agents.py", "--policy", "nobody"), 3, "policy: 'nobody' is not allowed"),
        (("run", "agents.py", "--config", "nowhere.toml"), 3, "no such configuration file"),
        (("run", "agents.py", "--trace", "/nowhere/at/all"), 1, "cannot be written"),
        (("pull", "nobody"), 4, "there is no model nobody"),
        (("pull", "pypi:nobody"), 1, "is no model source"),
        (("models", "--remove", "nobody"), 4, "there is no model nobody"),
        (("demo", "nowhere"), 2, "nowhere is not a folder"),
    ],
)
def test_what_a_user_can_cause_is_one_line_and_a_status(
    arguments: tuple[str, ...], status: int, says: str
) -> None:
    result = llmos(*arguments)
    assert result.exit_code == status
    assert says in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_a_file_that_does_not_run_is_named() -> None:
    Path("broken.py").write_text("def main(:\n")
    result = llmos("run", "broken.py")
    assert result.exit_code == 2
    assert "the file does not run: SyntaxError" in result.stderr


def test_a_missing_model_offline_says_how_to_get_it() -> None:
    Path("llmos.toml").write_text('home = "state"\ncache = "cache"\n')
    result = llmos("run", "agents.py", "--offline")
    assert result.exit_code == 4
    assert "llmos pull smollm2" in result.stderr


def test_run_writes_the_trace_that_was_asked_for() -> None:
    assert llmos("run", "agents.py", "--trace", "trace.json").exit_code == 0
    assert json.loads(Path("trace.json").read_text())["traceEvents"]


def test_a_quota_of_the_command_line_binds_the_program() -> None:
    result = llmos("run", "agents.py:think", "n=50", "--quota-tokens-out", "3", "--json")
    assert json.loads(result.stdout)["accounting"]["tokens_out"] <= 3


# --- the other commands ---------------------------------------------------------------------------


def test_the_shell_takes_a_line_and_a_script() -> None:
    assert "init" in llmos("shell", "-c", "ps").stdout
    result = llmos("shell", stdin="run agents.py a\n# a comment\nrun agents.py b\n")
    assert result.exit_code == 0
    assert "said a" in result.stdout
    assert "said b" in result.stdout
    assert llmos("shell", "-c", "run agents.py:boom").exit_code == 1


def test_models_tells_what_is_here_known_and_configured() -> None:
    value = json.loads(llmos("models", "--json").stdout)
    assert value["models"] == []
    assert {known["name"] for known in value["not_here"]} == {"smollm2", "minilm"}
    assert value["configured"]["scripted"]["is_here"] is True
    assert "llmos pull smollm2" in llmos("models").stdout


def test_a_pulled_model_is_listed_verified_and_removed(tiny_model_path: Path) -> None:
    pulled = llmos("pull", f"file:{tiny_model_path}", "--name", "toy", "--json")
    assert pulled.exit_code == 0, pulled.stderr
    card = json.loads(pulled.stdout)
    assert (card["name"], card["architecture"]) == ("toy", "llama")
    assert "toy is ready: llama" in llmos("pull", f"file:{tiny_model_path}", "--name", "toy").stdout
    assert llmos("models", "--verify").exit_code == 0
    weights = next(Path("cache/models/toy").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.unlink()  # it may be a link to the file that was pulled
    weights.write_bytes(whole[:-1])
    damaged = llmos("models")
    assert damaged.exit_code == 1
    assert "bytes, not" in damaged.stdout
    assert llmos("models", "--remove", "toy").exit_code == 0
    assert json.loads(llmos("models", "--json").stdout)["models"] == []


def test_offline_nothing_is_pulled() -> None:
    config = Path("llmos.toml")
    config.write_text("offline = true\n" + config.read_text())
    result = llmos("pull", "smollm2")
    assert result.exit_code == 4
    assert "offline is set" in result.stderr


def test_devices_tells_what_is_available_and_why_the_rest_is_not() -> None:
    value = json.loads(llmos("devices", "--json").stdout)
    assert any(device["is_available"] for device in value["devices"])
    assert all(device["is_available"] or device["reason"] for device in value["devices"])
    assert "scripted" in llmos("devices").stdout


def test_devices_remembers_the_rates_that_it_measured() -> None:
    measured = json.loads(llmos("devices", "--measure", "--json").stdout)["rates"]
    assert measured["scripted"]["decode_tokens_per_s"] > 0
    assert json.loads(llmos("devices", "--json").stdout)["rates"] == measured


def test_doctor_finds_the_missing_models_and_says_what_to_do() -> None:
    Path("llmos.toml").write_text('home = "state"\ncache = "cache"\n')
    result = llmos("doctor", "--json")
    found = {finding["what"]: finding for finding in json.loads(result.stdout)}
    assert result.exit_code == 4
    assert found["model smollm2"]["remedy"] == "llmos pull smollm2"
    assert found["python"]["state"] == "ok"
    assert "limits" in found["python tool"]["detail"]


def test_doctor_finds_a_wrong_setting() -> None:
    Path("llmos.toml").write_text("polcy = 1\n")
    result = llmos("doctor")
    assert result.exit_code == 3
    assert "did you mean 'policy'" in result.stdout


def test_doctor_finds_a_home_that_is_a_file() -> None:
    Path("llmos.toml").write_text('home = "agents.py"\n')
    finding = json.loads(llmos("doctor", "--json").stdout)[4]
    assert (finding["what"], finding["state"]) == ("home", "problem")
    assert "set LLMOS_HOME to another folder" in finding["remedy"]


def test_doctor_lists_variables_that_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_PORT", "tcp://10.0.0.1:80")
    assert "not settings of llmos: LLMOS_PORT" in llmos("doctor").stdout


# --- as the operating system sees it --------------------------------------------------------------


def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "llmos", *arguments], **options)


def test_standard_input_reaches_the_program() -> None:
    process = start("run", "agents.py:count", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, _ = process.communicate(b"12345", timeout=60)
    assert (process.returncode, out) == (0, b"5\n")


def test_no_stdin_leaves_standard_input_alone() -> None:
    process = start(
        "run", "agents.py:count", "--no-stdin", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    out, _ = process.communicate(b"12345", timeout=60)
    assert (process.returncode, out) == (0, b"0\n")


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    process = start("run", "agents.py:flood", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(100)
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_program_and_gives_130(number: signal.Signals) -> None:
    process = start("run", "agents.py:hang", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"hanging\n"
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (130, b"", b"")


def test_the_shell_on_a_real_terminal() -> None:
    leader, follower = pty.openpty()
    process = start(
        "shell",
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
        # Ctrl-C becomes a signal only on the terminal that controls the session.
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(follower)
    screen = Terminal(leader)
    screen.waits_for("llmos>")
    screen.types("agents.py:hang\r")
    screen.waits_for("hanging")
    screen.types("\x03")
    screen.waits_for("llmos>")
    screen.types("agents.py tea\r")
    screen.waits_for("said tea")
    screen.waits_for("llmos>")
    screen.types("top\r")
    screen.waits_for("policy priority")
    screen.types("q")
    screen.waits_for("llmos>")
    screen.types("\x04")
    assert process.wait(60) == 0
    os.close(leader)


class Terminal:
    """The other side of a pseudo terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._text = ""

    def types(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def waits_for(self, text: str) -> None:
        """Read until a text appears after the last one that was waited for."""
        while text not in self._text:
            ready, _, _ = select.select([self._fd], [], [], 60)
            assert ready, f"{text!r} did not appear in {self._text!r}"
            self._text += os.read(self._fd, 65_536).decode(errors="replace")
        self._text = self._text.partition(text)[2]
