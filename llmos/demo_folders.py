"""Where the demo reads and writes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import llmos
from llmos.exits import UsageError


def own_docs(staging: Path) -> Path:
    """A folder with this project's own text: a checkout's docs and README, else the package's code.

    The files are copied to `staging`, which is replaced, so that the agents see one folder and
    nothing else.
    """
    package = Path(llmos.__file__).parent
    base = package.parent
    if (base / "pyproject.toml").is_file():
        found = [*sorted((base / "docs").rglob("*.md")), base / "README.md"]
    else:
        base = package
        found = sorted([*package.rglob("*.md"), *package.rglob("*.py")])
    shutil.rmtree(staging, ignore_errors=True)
    for path in found:
        if path.is_file():
            target = staging / path.relative_to(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return staging


def given_folder(folder: Path) -> Path:
    """A folder that a person named, as a path. Raises: UsageError when there is none."""
    path = folder.expanduser().resolve()
    if not path.is_dir():
        raise UsageError(f"FOLDER: {folder} is not a folder")
    return path


def output_folder(out: Path, home: Path) -> Path:
    """`out` where it can be written, else a folder of the user's own."""
    for folder in (out.expanduser().absolute(), home / "demo"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise UsageError(f"--out: neither {out} nor {home / 'demo'} can be written")
