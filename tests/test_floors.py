"""Imports only go down, and what is slow to import is imported when it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {"syscalls": 0, "drivers": 1, "memory": 2, "kernel": 3, "llmos": 4}
# Userland sees the ABI and itself; nothing but the face may see userland.
USERLAND = "agents"
FOLDERS = [*FLOORS, USERLAND]
BARE_FOLDERS = {*FOLDERS} - {"llmos"}

# These own a device or an index: only drivers and memory may use them, and from inside functions.
TENSORS = {"accelerate", "faiss", "llama_cpp", "peft", "tokenizers", "torch", "transformers"}
HOLD_TENSORS = {"drivers", "memory"}
# Slow to import too, and needed in one place each.
_PARSERS = {"bs4", "docx", "markdown_it", "pyarrow", "pypdf"}
_LEARNING = {"datasets", "matplotlib", "optuna", "pandas", "scipy", "seqeval", "sklearn"}
SLOW = {*TENSORS, *_PARSERS, *_LEARNING, "gguf", "huggingface_hub", "llguidance", "openai"}
SLOW |= {"safetensors"}
# Fast enough for a module that needs them, too slow for `llmos --help`.
NOT_FOR_HELP = {*SLOW, "httpx", "networkx", "numpy", "sqlite3", "starlette", "tiktoken", "uvicorn"}


class Import(NamedTuple):
    """One import: the module named, and whether it runs when the importing module is imported."""

    file: Path
    line: int
    module: str
    runs_at_import: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def imports_of(file: Path) -> Iterator[Import]:
    """Every import of a file, those inside functions and `if TYPE_CHECKING` too."""
    tree = ast.parse(file.read_text(), str(file))
    late: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            late.update(ast.walk(node))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            late.update(inside for part in node.body for inside in ast.walk(part))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}"]
            if node.module == "llmos":
                # `from llmos import kernel` names a floor in its last part.
                names = [f"llmos.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield Import(file, node.lineno, name, node not in late)


def folder_of(module: str) -> str | None:
    """The top-level folder that an imported module lies in, or None for another project's."""
    top, *rest = module.split(".")
    if top != "llmos":
        return None
    return rest[0] if rest and rest[0] in FOLDERS else "llmos"


def is_allowed(folder: str, target: str) -> bool:
    if folder == USERLAND:
        return target in ("syscalls", USERLAND)
    if target == USERLAND:
        return folder == "llmos"
    return FLOORS[target] <= FLOORS[folder]


def files_of(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_only_go_down(folder: str) -> None:
    wrong = [
        str(found)
        for file in files_of(folder)
        for found in imports_of(file)
        if (target := folder_of(found.module)) is not None and not is_allowed(folder, target)
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_name_their_floor_in_full(folder: str) -> None:
    wrong = [
        str(found)
        for file in files_of(folder)
        for found in imports_of(file)
        if found.module.startswith(".") or found.module.split(".")[0] in BARE_FOLDERS
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_slow_libraries_load_when_first_needed(folder: str) -> None:
    wrong = [
        str(found)
        for file in files_of(folder)
        for found in imports_of(file)
        if found.runs_at_import and found.module.split(".")[0] in SLOW
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", sorted({*FOLDERS} - HOLD_TENSORS))
def test_tensor_libraries_stay_with_drivers_and_memory(folder: str) -> None:
    wrong = [
        str(found)
        for file in files_of(folder)
        for found in imports_of(file)
        if found.module.split(".")[0] in TENSORS
    ]
    assert wrong == []


def test_help_loads_nothing_slow() -> None:
    script = (
        "import sys\nfrom llmos import cli\nsys.argv = ['llmos', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print('loaded:', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    *_, loaded = shown.stdout.splitlines()
    assert loaded.startswith("loaded:"), shown.stderr
    assert NOT_FOR_HELP & set(loaded.split()) == set()


def test_the_rules_see_what_they_should(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "import torch\n"
        "if TYPE_CHECKING:\n    from llmos.kernel.process import Process\n"
        "def late():\n    import faiss\n"
        "from llmos import agents\n"
    )
    found = {(i.module, i.runs_at_import) for i in imports_of(file)}
    assert found == {
        ("typing", True),
        ("torch", True),
        ("llmos.kernel.process", False),
        ("faiss", False),
        ("llmos.agents", True),
    }
    assert folder_of("llmos.kernel.process") == "kernel"
    assert folder_of("llmos.cli") == folder_of("llmos") == "llmos"
    assert not is_allowed("memory", "kernel")
    assert not is_allowed("agents", "drivers")
    assert not is_allowed("kernel", "agents")
    assert is_allowed("llmos", "agents")
