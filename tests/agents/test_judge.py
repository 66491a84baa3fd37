"""A judge's bias for a place costs decisions and moves no win rate."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.agents.judge import Judged, judge, summed_up, verdict
from llmos.drivers.contract import ModelSpec
from llmos.drivers.scripted import Scripted
from llmos.kernel.kernel import Kernel
from llmos.kernel.settings import ModelSetting, Settings
from llmos.syscalls.errors import SyscallError

PAIRS = [
    {"question": "q1", "first": "good", "second": "bad"},
    {"question": "q2", "first": "bad", "second": "good"},
]


def says(answer: Any, pairs: Any, tmp_path: Path) -> Judged:
    """The judgements of a model whose replies a function gives."""

    async def scenario() -> Judged:
        driver = Scripted(ModelSpec("m", Path("m")), script=answer)
        models = {"m": ModelSetting("m", "m", "scripted", lambda: driver)}
        settings = Settings(home=tmp_path, models=models, default_model="m")
        kernel = Kernel(settings, bind=OS, programs={"judge": judge})
        try:
            pid = await kernel.os.spawn("judge", pairs)
            return Judged.model_validate(await kernel.os.result(pid))
        finally:
            await kernel.stop()

    return asyncio.run(scenario())


def test_an_answer_that_is_better_in_both_orders_wins(tmp_path: Path) -> None:
    judged = says(lambda text: "A" if "A: good" in text else "B", PAIRS, tmp_path)

    assert [one.winner for one in judged.verdicts] == ["first", "second"]
    assert (judged.wins, judged.losses, judged.ties) == (1, 1, 0)
    assert (judged.win_rate, judged.consistency, judged.first_place) == (0.5, 1.0, 0.5)


def test_a_judge_that_prefers_a_place_decides_nothing(tmp_path: Path) -> None:
    judged = says(lambda text: "A", PAIRS, tmp_path)

    assert judged.ties == 2
    assert (judged.win_rate, judged.consistency, judged.first_place) == (0.5, 0.0, 1.0)


def test_nothing_to_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match="there are none"):
        says(lambda text: "A", [], tmp_path)


def test_the_first_answers_win_rate_counts_a_tie_as_half() -> None:
    judged = summed_up([verdict(True, True), verdict(True, False), verdict(False, True)], 3)

    assert judged.win_rate == pytest.approx(2 / 3)
    assert judged.consistency == pytest.approx(1 / 3)
