"""Working folders for tests of the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CONFIG = """
home = "state"
cache = "cache"
default_model = "scripted"
[models.scripted]
source = "scripted"
driver = "scripted"
"""


@pytest.fixture
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder as working folder, without settings from outside."""
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("LLMOS_")]:
        monkeypatch.delenv(variable)
    return tmp_path


@pytest.fixture
def scripted_folder(work_folder: Path) -> Path:
    """A working folder whose settings name one model, a scripted one."""
    (work_folder / "llmos.toml").write_text(CONFIG)
    return work_folder
