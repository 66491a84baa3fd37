"""Prompts are data: every one that a program asks for is there and can be filled in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import llmos.agents.prompts
from llmos.agents.prompts import Prompt, Shot, examples, prompt
from llmos.agents.tools import TOOLS
from llmos.kernel.sandbox import PYTHON_TOOL

FOLDER = Path(llmos.agents.prompts.__file__).parent
ASKED = sorted(
    {
        name
        for file in FOLDER.glob("*.py")
        for name in re.findall(r'prompt\("(\w+)"\)', file.read_text())
    }
)


def test_programs_ask_for_prompts() -> None:
    assert "react" in ASKED


@pytest.mark.parametrize("name", ASKED)
def test_every_prompt_that_is_asked_for_is_there(name: str) -> None:
    assert prompt(name).user


def test_a_prompt_is_system_then_shots_then_the_turn() -> None:
    form = Prompt(system="Be {how}.", shots=(Shot(user="{a}", assistant="b"),), user="{what}?")
    texts = [(message.role, message.text) for message in form.messages(how="brief", what="{x}")]
    assert texts == [
        ("system", "Be brief."),
        ("user", "{a}"),
        ("assistant", "b"),
        ("user", "{x}?"),
    ]


def test_what_agents_of_one_role_share_stands_first() -> None:
    form = prompt("summary")
    one, two = form.messages(text="a"), form.messages(text="b")
    assert one[:-1] == two[:-1] == form.opening()


def test_every_example_is_a_call_that_its_tool_takes() -> None:
    tools = {tool.spec.name: tool for tool in (*TOOLS, PYTHON_TOOL)}
    assert {example.tool for example in examples()} == set(tools)
    for example in examples():
        tools[example.tool].validate(example.arguments)
