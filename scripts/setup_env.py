"""Set-up from a fresh clone: `.venv` with every package, the compiled llama.cpp binding, models.

Runs on the system's Python with the standard library only. The compile, the longest part by far,
runs beside the downloads. Last, the fastest number format for the default model's weights is found.
A stamp in `.venv` says what the set-up was made from: when nothing has changed, this ends in a
fraction of a second and touches no network.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import llama_wheel
from commands import CommandFailed, Commands, explain

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "llmos-setup.json"
LOGS = ROOT / ".cache" / "setup"
MODELS = ("smollm2", "minilm")
OLDEST, NEWEST = (3, 11), (3, 13)
PYTHON_VERSION = "{}.{}".format(*sys.version_info[:2])


def main() -> int:
    """Do what is due. Returns the exit status."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        return _run_on_another_python()
    release = _pinned(llama_wheel.PACKAGE)
    wanted = _wanted(llama_wheel.key(release))
    if _is_done(wanted) and not _missing_models():
        return 0
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / "lock").open("w") as lock:
        # Two `make` in one clone: the second waits here and then finds the work done.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return Setup(release, wanted).run()


class Setup:
    """One run: which parts are due, in which order, and what each is doing right now."""

    def __init__(self, release: str, wanted: dict[str, str]) -> None:
        self._release = release
        self._wanted = wanted
        self._commands = Commands()
        self._started = time.monotonic()
        self._doing: dict[str, str] = {}
        self._shown_at = 0.0

    def run(self) -> int:
        """Do what is due, showing progress. Returns the exit status."""
        if _is_done(self._wanted):
            return self._together({"models": self._pull_models}) if _missing_models() else 0
        problem = _preflight()
        if problem:
            print(problem, file=sys.stderr)
            return 1
        print(f"llmos set-up; logs in {LOGS.relative_to(ROOT)}/", flush=True)
        for old in LOGS.glob("*.log"):
            old.unlink()
        self._make_venv()
        status = (
            # First and alone: pip cannot be replaced while another part runs it.
            self._together({"pip": self._update_pip})
            or self._together({"llama.cpp": self._compile, "packages": self._install_packages})
            or self._together({"install": self._install_wheel})
        )
        if status == 0:
            STAMP.write_text(json.dumps(self._wanted, indent=1))
            status = self._together({"tuning": self._tune})
        if status == 0:
            print(f"set-up done in {self._clock()}", flush=True)
        return status

    def _together(self, parts: dict[str, Callable[[], None]]) -> int:
        """Run the parts in threads until all end or one fails."""
        with ThreadPoolExecutor(len(parts)) as pool:
            futures = {pool.submit(part): name for name, part in parts.items()}
            running = set(futures)
            name = "the start"
            try:
                while running:
                    done, running = wait(running, 0.5, return_when=FIRST_COMPLETED)
                    self._show(is_last=not running)
                    for future in done:
                        name = futures[future]
                        future.result()
            except CommandFailed as failed:
                self._commands.stop()
                print(f"\n{explain(name, failed)}", file=sys.stderr, flush=True)
                return 1
            except OSError as refused:
                self._commands.stop()
                print(f"\nset-up failed at {name}: {refused}", file=sys.stderr, flush=True)
                return 1
            except KeyboardInterrupt:
                self._commands.stop()
                print("\nset-up interrupted; run make again, what is done is kept", flush=True)
                return 130
        return 0

    # --- the parts ---

    def _make_venv(self) -> None:
        if VENV_PYTHON.exists() and _stamp().get("root", str(ROOT)) == str(ROOT):
            ask = [VENV_PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            if subprocess.run(ask, capture_output=True, text=True).stdout.strip() == PYTHON_VERSION:
                return
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)

    def _update_pip(self) -> None:
        # With setuptools here the project installs without a second, isolated environment.
        self._pip("pip", *(f"{name}=={_pinned(name)}" for name in ("pip", "setuptools")))
        self._doing.clear()

    def _compile(self) -> None:
        log = LOGS / "llama.cpp.log"
        report = self._reporter("llama.cpp")
        llama_wheel.ensure(self._release, VENV_PYTHON, self._commands, log, report)
        report("ready")

    def _install_packages(self) -> None:
        self._pip("packages", *_requirements_but(llama_wheel.PACKAGE))
        self._pip("packages", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        self._doing["packages"] = "ready"
        self._pull_models()

    def _pull_models(self) -> None:
        command = [str(VENV_PYTHON), str(ROOT / "scripts" / "pull_models.py"), *MODELS]
        report = self._reporter("models")
        for line in self._commands.run(command, LOGS / "models.log"):
            report(line)
        report("ready")

    def _install_wheel(self) -> None:
        wheel = llama_wheel.cached(self._release)
        assert wheel is not None, "the wheel was built a moment ago"
        # The same release may be here already, compiled for another processor.
        if _stamp().get("wheel", self._wanted["wheel"]) != self._wanted["wheel"]:
            self._pip("install", "--no-deps", "--force-reinstall", str(wheel))
        self._pip("install", str(wheel))

    def _tune(self) -> None:
        """Find the fastest number format of the default model's weights on this machine, once."""
        self._doing.clear()
        command = [str(VENV / "bin" / "llmos"), "tune", MODELS[0], "--quick"]
        report = self._reporter("tuning")
        try:
            for line in self._commands.run(command, LOGS / "tuning.log"):
                report(line)
        except CommandFailed:
            # The model opens as shipped all the same.
            report("left for later: llmos tune")

    def _pip(self, part: str, *arguments: str) -> None:
        command = [str(VENV_PYTHON), "-m", "pip", "install", "--progress-bar=off"]
        command += ["--constraint", str(ROOT / "constraints.txt"), *arguments]
        report = self._reporter(part)
        for line in self._commands.run(command, LOGS / f"{part}.log"):
            if line.startswith("Installing collected packages: "):
                report(f"installing {line.count(',') + 1} packages")
            elif line.startswith(("Collecting", "Downloading", "Building", "Successfully")):
                report(line.partition("-")[0].partition("==")[0].lower())

    # --- what is going on ---

    def _reporter(self, part: str) -> Callable[[str], None]:
        def report(text: str) -> None:
            self._doing[part] = text

        return report

    def _show(self, *, is_last: bool) -> None:
        """One line that moves on a terminal; elsewhere a new line every five seconds."""
        doing = "; ".join(f"{part}: {text[:60]}" for part, text in list(self._doing.items()))
        if not doing:
            return
        line = f"[{self._clock()}] {doing}"
        if sys.stdout.isatty():
            columns = shutil.get_terminal_size().columns
            print(f"\r\x1b[K{line[: columns - 1]}", end="\n" if is_last else "", flush=True)
        elif is_last or time.monotonic() - self._shown_at >= 5:
            self._shown_at = time.monotonic()
            print(line, flush=True)

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        return f"{minutes}:{seconds:02d}"


# --- what is wanted and what is there -------------------------------------------------------------


def _wanted(wheel_key: str) -> dict[str, str]:
    """Everything that a finished set-up depends on."""
    names = ("pyproject.toml", "constraints.txt")
    inputs = b"".join((ROOT / name).read_bytes() for name in names)
    return {
        "inputs": hashlib.sha256(inputs).hexdigest(),
        "wheel": wheel_key,
        "python": PYTHON_VERSION,
        "root": str(ROOT),  # a virtual environment does not survive being moved
    }


def _stamp() -> dict[str, str]:
    return json.loads(STAMP.read_text()) if STAMP.exists() else {}


def _is_done(wanted: dict[str, str]) -> bool:
    return VENV_PYTHON.exists() and _stamp() == wanted


def _missing_models() -> list[str]:
    """The default models that the store lacks; its folder is as in memory/model_store.py."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmos"
    folder = Path(os.environ.get("LLMOS_CACHE") or cache) / "models"
    return [name for name in MODELS if not (folder / name / "card.json").exists()]


def _pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        if name == package:
            return version
    raise SystemExit(f"constraints.txt does not pin {package}")


def _requirements_but(package: str) -> list[str]:
    """The project's direct requirements, those for development too, without one package."""
    import tomllib  # not in the Pythons that `_run_on_another_python` must still run on

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every: list[str] = project["dependencies"] + project["optional-dependencies"]["dev"]
    return [requirement for requirement in every if not requirement.startswith(package)]


def _preflight() -> str | None:
    """What this machine lacks and how to get it, or None."""
    lacks = [
        package
        for package, variable, programs in (
            ("gcc", "CC", ("cc", "gcc", "clang")),
            ("g++", "CXX", ("c++", "g++", "clang++")),
        )
        if not any(map(shutil.which, [os.environ.get(variable, programs[0]), *programs]))
    ]
    if importlib.util.find_spec("ensurepip") is None:
        lacks.append(f"python{PYTHON_VERSION}-venv")
    if not lacks:
        return None
    names = " ".join(lacks)
    return (
        f"This machine lacks {names}.\n"
        f"On Debian or Ubuntu: sudo apt-get install {names}\nThen run make again."
    )


def _run_on_another_python() -> int:
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        python = shutil.which(f"python3.{minor}")
        if python:
            os.execv(python, [python, *sys.argv])
    print(
        f"llmos needs Python 3.11, 3.12 or 3.13; this is {PYTHON_VERSION}.\n"
        "Install one (Debian, Ubuntu: sudo apt-get install python3.12 python3.12-venv) and run "
        "make again, or name it: make setup PYTHON=/path/to/python3.12",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
