"""The shipped tools: schemas that hold a model, files of the caller's home, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.agents.tools import TOOLS
from llmos.syscalls.errors import SyscallError

Run = Callable[..., Any]


async def call(os: OS, name: str, arguments: dict[str, Any]) -> str:
    return (await os.tool_call(name, arguments)).text


async def write_then_read(os: OS) -> list[str]:
    return [
        await call(os, "write_file", {"path": "a/note.txt", "text": "olé"}),
        await call(os, "list_files", {"path": "a"}),
        await call(os, "list_files", {}),
        await call(os, "read_file", {"path": "a/note.txt"}),
    ]


def test_files_live_in_the_callers_home(run_program: Run) -> None:
    assert run_program(write_then_read)[0] == [
        "Saved 4 bytes in a/note.txt.",
        "a/note.txt (4 bytes)",
        "a/",
        "olé",
    ]


async def read_missing(os: OS) -> None:
    await call(os, "write_file", {"path": "there.txt", "text": "x"})
    await call(os, "read_file", {"path": "missing.txt"})


def test_a_missing_file_names_those_that_are_there(run_program: Run) -> None:
    with pytest.raises(SyscallError, match=r"the files are there\.txt") as caught:
        run_program(read_missing)
    assert caught.value.code == "not_found"


async def read_binary(os: OS) -> str:
    fd = await os.open("odd.bin", "w")
    await os.write(b"a\xffb", fd=fd)
    await os.close(fd)
    return await call(os, "read_file", {"path": "odd.bin"})


def test_a_file_that_is_not_utf8_is_read_with_a_notice(run_program: Run) -> None:
    notice, text = run_program(read_binary)[0].split("\n")
    assert "not UTF-8" in notice
    assert text == "a\ufffdb"


async def search(os: OS) -> list[str]:
    found = [await call(os, "search_memory", {"query": "who is Anna"})]
    await os.remember(["Anna wrote the plan.", "The lamp is red."])
    found.append(await call(os, "search_memory", {"query": "Anna plan"}))
    return found


def test_memory_is_searched_for_the_caller(run_program: Run) -> None:
    nothing, found = run_program(search)[0]
    assert nothing == "Nothing in memory fits."
    assert found.splitlines()[0] == "Anna wrote the plan."


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("calculator", {"expression": "six times seven"}),
        ("calculator", {"expression": "1" * 300}),
        ("calculator", {}),
        ("read_file", {"path": ""}),
        ("list_files", {"path": ".", "deep": True}),
        ("python", {"code": ""}),
    ],
)
def test_a_malformed_call_is_refused_with_its_problems(
    run_program: Run, name: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(SyscallError) as caught:
        run_program(call, name, arguments)
    assert caught.value.code == "tool_invalid"
    assert caught.value.fields["problems"]


def test_python_runs_in_a_process_of_its_own(run_program: Run) -> None:
    code = "import os\nprint(len(os.listdir('.')), 6 * 7)"
    assert run_program(call, "python", {"code": code})[0] == "1 42\n"


def test_the_schema_of_every_tool_keeps_the_limits_of_its_arguments() -> None:
    by_name = {tool.spec.name: tool.spec.parameters["properties"] for tool in TOOLS}
    assert by_name["calculator"]["expression"]["pattern"].startswith("^[0-9(.-]")
    assert by_name["read_file"]["path"]["maxLength"] == 200
