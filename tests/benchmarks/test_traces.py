"""Programs from files: a list by hand, and what a kernel recorded."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.drivers.contract import LanguageModel, ModelSpec
from llmos.drivers.scripted import Scripted
from llmos.kernel.clock import VirtualClock
from llmos.kernel.kernel import Kernel
from llmos.kernel.settings import ModelSetting, Settings
from llmos.syscalls.content import user
from llmos.syscalls.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.simulate import replayed
from benchmarks.simulation import Costs, Program, Turn
from benchmarks.traces import read_programs, recorded_programs, write_programs

COSTS = Costs({size: 0.01 * size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)})
LIST = """\
{"arrived_s": 107, "turns": [{"prompt_tokens": 40, "new_tokens": 10}]}

{"arrived_s": 100.5, "client": "ann", "nice": 5, "shared_tokens": 8, "turns": [\
{"prompt_tokens": 40, "new_tokens": 10, "wait_s": 3}, \
{"prompt_tokens": 20, "new_tokens": 10, "is_fresh": true}]}
"""


def test_a_list_is_read_in_order_of_arrival(tmp_path: Path) -> None:
    path = tmp_path / "programs.jsonl"
    path.write_text(LIST)
    turns = [Turn(40, 10, 3.0), Turn(20, 10, 0.0, is_fresh=True)]
    assert read_programs(path) == [
        Program(0.0, turns, shared_tokens=8, client="ann", nice=5),
        Program(6.5, [Turn(40, 10)]),
    ]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "programs.jsonl"
    programs = [
        Program(0.0, [Turn(40, 10, 3.0), Turn(20, 10, 0.5, is_fresh=True)], 8, "ann", -5),
        Program(6.5, [Turn(40, 10)]),
    ]
    write_programs(path, programs)
    assert read_programs(path) == programs


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"turns": []}', "line 1: turns"),
        ('\n{"turns": [{"prompt_tokens": 0, "new_tokens": 1}]}', "line 2: turns.0.prompt_tokens"),
        ('{"turns": [{"prompt_tokens": 1, "new_tokens": 1}], "niece": 1}', "line 1: niece"),
        ("turns", "line 1"),
        ("", "no program"),
        ('{"traceEvents": []}', "no program"),
        ('{"traceEvents": [{"cat": "generate", "name": "prefill"}]}', "no recording of a kernel"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_place(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "programs.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_programs(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        read_programs(tmp_path / "nowhere")


def test_a_list_is_replayed_under_each_policy(tmp_path: Path) -> None:
    path = tmp_path / "programs.jsonl"
    path.write_text(LIST)
    figures = replayed(read_programs(path), COSTS)
    assert (figures["agents"], figures["calls"], figures["new_tokens"]) == (2, 3, 30)
    # 40 tokens read and 9 steps, 3 s of a tool, 20 tokens and 9 steps.
    assert figures["fifo_mean_s"] == pytest.approx((0.49 + 3.0 + 0.29 + 0.49) / 2, abs=0.06)
    assert figures["again_tokens"] == 0
    assert figures["error"] is None


# --- what a kernel recorded -----------------------------------------------------------------------


class Ticking(VirtualClock):
    """Every look at it takes a millisecond, so that everything takes some time."""

    def now(self) -> float:
        self.advance(0.001)
        return super().now()


def recorded(home: Path, body: Any) -> Any:
    """The trace of a kernel, as a file has it."""
    spec = ModelSpec("scripted", Path("scripted"), context_tokens=4096)

    def open_driver() -> LanguageModel:
        return Scripted(spec)

    async def scenario() -> Any:
        model = ModelSetting("scripted", "scripted", "scripted", open_driver)
        settings = Settings(home=home, models={"scripted": model}, default_model="scripted")
        clock = Ticking()
        kernel = Kernel(settings, bind=OS, programs={}, clock=clock)
        try:
            await body(kernel, clock)
            return json.loads(json.dumps(kernel.chrome_trace()))
        finally:
            await kernel.stop()

    return asyncio.run(scenario())


def test_a_recorded_process_is_a_program_with_its_tools_times(tmp_path: Path) -> None:
    made: list[Any] = []

    async def agent(os: OS, clock: Any) -> None:
        context = await os.context_open()
        for text in ("first", "second"):
            answer = await os.generate([user(text)], context=context, max_tokens=5)
            made.append(answer.usage)
            clock.advance(7.0)
        made.append((await os.generate("anew", max_tokens=3)).usage)

    async def body(kernel: Kernel, clock: VirtualClock) -> None:
        async def main(os: OS) -> None:
            await agent(os, clock)

        pid = await kernel.os.spawn(main, nice=5, client="ann")
        await kernel.os.wait(pid)

    trace = recorded(tmp_path, body)
    (program,) = recorded_programs(trace)
    first, second, third = made
    known = first.prompt_tokens + first.completion_tokens
    waits = [turn.wait_s for turn in program.turns]
    assert (program.nice, program.client) == (5, "ann")
    assert [turn[:2] for turn in program.turns] == [
        (first.prompt_tokens, first.completion_tokens),
        (second.prompt_tokens - known, second.completion_tokens),
        (third.prompt_tokens, third.completion_tokens),
    ]
    assert [turn.is_fresh for turn in program.turns] == [False, False, True]
    assert waits == pytest.approx([7.0, 7.0, 0.0], abs=0.5)
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace))
    assert [one.turns for one in read_programs(path)] == [program.turns]


def test_requests_of_one_conversation_are_one_program(tmp_path: Path) -> None:
    async def body(kernel: Kernel, clock: VirtualClock) -> None:
        talk = [user("hello")]

        async def request(os: OS) -> None:
            answer = await os.generate(talk, max_tokens=5)
            talk.extend([answer.message, user("go on")])

        async def other(os: OS) -> None:
            await os.generate("something else", max_tokens=1)

        for program in (request, request, other, request):
            await kernel.os.wait(await kernel.os.spawn(program))
            clock.advance(4.0)

    long, short = recorded_programs(recorded(tmp_path, body))
    assert [turn.is_fresh for turn in long.turns] == [False] * 3
    assert [turn.wait_s for turn in long.turns] == pytest.approx([4.0, 8.0, 0.0], abs=0.5)
    assert [turn.new_tokens for turn in short.turns] == [1]
