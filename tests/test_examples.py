"""Every example runs, and the README's program is the first of them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
# A round of learning takes minutes; tests/agents/test_tool_practice.py has a shorter one.
LONG = {"tool_agent"}
NAMES = sorted({path.stem for path in EXAMPLES.glob("*.py")} - LONG)
# What an example must print, whatever the model says.
PRINTED = {
    "assistant": "-- the kernel has ended",
    "debate": "winner: ",
    "documents": "[1] 0",
    "pipes": "{'lines': 2, 'words': 7, 'bytes': 29}",
    "react": 'calculator {"expression": "123 * 456"} = 56088',
    "research": "critical path: worker-",
    "chat": "2 answers",
    "intents": "accuracy on held-out questions: ",
    "ner": "entity F1 on held-out sentences: ",
    "pretrain": "version docstrings: full",
}
# Less training than a person who tries an example would have.
ARGUMENTS = {"pretrain": ["8"]}
SHORT = {"EPOCHS": "0.2", "STEPS": "4"}


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path", "minilm_path")
@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LLMOS_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *ARGUMENTS.get(name, [])])
    for variable, value in SHORT.items():
        monkeypatch.setenv(variable, value)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.strip()
    assert PRINTED.get(name, "") in printed
