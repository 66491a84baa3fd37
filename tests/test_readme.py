"""What the README shows is what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_readme_s_program_is_the_first_example() -> None:
    (shown,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown.strip() in (ROOT / "examples/hello.py").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_folder_of_the_readme_s_table_is_there() -> None:
    folders = re.findall(r"`(\w+)/`", (ROOT / "README.md").read_text())
    assert {"syscalls", "kernel", "memory", "drivers", "agents", "llmos"} <= set(folders)
    assert all((ROOT / folder).is_dir() for folder in folders)
