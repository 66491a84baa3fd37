"""The small programs of the shell's pipes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos.syscalls.errors import SyscallError

Run = Callable[..., Any]


def test_echo_writes_its_words(run_program: Run) -> None:
    assert run_program("echo", "a", 1, None)[1] == "a 1 None\n"


def test_cat_copies_bytes_as_they_are(run_program: Run, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"one\n")
    assert run_program("cat", str(tmp_path / "one"))[1] == "one\n"
    assert run_program("cat", stdin=b"two")[1] == "two"


def test_grep_copies_what_matches_and_counts(run_program: Run) -> None:
    assert run_program("grep", "t.o$", stdin=b"one\ntwo\nTWO\n") == (1, "two\n")
    assert run_program("grep", "TWO", ignore_case=True, stdin=b"two\nTWO")[0] == 2


def test_grep_names_a_pattern_that_is_wrong(run_program: Run) -> None:
    with pytest.raises(SyscallError, match="regular expression") as caught:
        run_program("grep", "(", stdin=b"")
    assert caught.value.code == "invalid"


def test_wc_counts(run_program: Run) -> None:
    value, output = run_program("wc", stdin="one tö\nthree\n".encode())
    assert value == {"lines": 2, "words": 3, "bytes": 14}
    assert output == "2 3 14\n"


@pytest.mark.parametrize("seconds", ["soon", -1, None])
def test_sleep_names_what_is_no_time(run_program: Run, seconds: object) -> None:
    with pytest.raises(SyscallError, match=r"seconds: .* is not a number") as caught:
        run_program("sleep", seconds)
    assert caught.value.code == "invalid"


def test_programs_join_by_pipes(boot_agents: Callable[..., Any]) -> None:
    async def main() -> tuple[Any, bytes]:
        async with boot_agents() as kernel:
            os = kernel.os
            said = await os.spawn("echo", "one two")
            loud = await os.spawn("upper", stdin_from=said)
            found = await os.spawn("grep", "TWO", stdin_from=loud)
            output = b"".join([data async for data in kernel.output(found)])
            return await os.results([said, loud, found]), output

    assert asyncio.run(main()) == ([None, None, 1], b"ONE TWO\n")
