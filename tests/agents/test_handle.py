"""The handle: what it adds to the calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from llmos.agents.handle import OS
from llmos.syscalls.errors import SyscallError

Run = Callable[..., Any]


class Inner(BaseModel):
    colour: str


class Lamp(BaseModel):
    height: int
    light: Inner


async def lamp(os: OS, max_tokens: int) -> Any:
    return (await os.generate_as(Lamp, "Invent a lamp.", max_tokens=max_tokens)).model_dump()


def test_a_shape_is_filled_in_by_the_model(run_program: Run) -> None:
    reply = '{"height":3,"light":{"colour":"red"}}'
    value, _ = run_program(lamp, 60, script=lambda said: reply)
    assert value == {"height": 3, "light": {"colour": "red"}}


def test_fields_that_the_shape_does_not_name_are_not_written(run_program: Run) -> None:
    reply = '{"height":3,"light":{"colour":"red","size":1},"more":2}'
    value, _ = run_program(lamp, 60, script=lambda said: reply)
    assert set(value) == {"height", "light"}
    assert set(value["light"]) == {"colour"}


def test_json_that_was_cut_is_an_error_that_says_what_to_raise(run_program: Run) -> None:
    with pytest.raises(SyscallError, match="raise max_tokens above 5") as caught:
        run_program(lamp, 5, script=lambda said: '{"height":3,"light":{"colour":"red"}}')
    assert caught.value.code == "failed"


async def sums(os: OS, numbers: list[int]) -> int:
    if len(numbers) == 1:
        return numbers[0]
    halves = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
    return sum(await os.results([await os.spawn(sums, half) for half in halves]))


async def fail(os: OS) -> None:
    raise SyscallError("denied", "as it was told")


async def wait_for_failure(os: OS) -> Any:
    return await os.result(await os.spawn(fail))


def test_results_come_in_the_order_of_the_children(run_program: Run) -> None:
    assert run_program(sums, [1, 2, 3, 4, 5])[0] == 15


def test_the_error_of_a_child_is_raised_where_its_result_is_asked_for(run_program: Run) -> None:
    with pytest.raises(SyscallError, match="as it was told") as caught:
        run_program(wait_for_failure)
    assert caught.value.code == "denied"


async def write_and_read_text(os: OS) -> str:
    await os.write_text("a.txt", "olé")
    return await os.read_text("a.txt")


def test_a_text_is_written_and_read_whole(run_program: Run) -> None:
    assert run_program(write_and_read_text)[0] == "olé"
