"""From what agents did on the real model to rows that it is trained on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import llmos
from llmos.agents.handle import OS
from llmos.drivers.rows.kinds import ChatRow, PreferRow
from llmos.drivers.rows.reading import read_rows
from llmos.kernel.kernel import Kernel
from llmos.syscalls.content import system, user
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import Sampling

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("smollm2_path")]

MODEL = {"driver": "llama_cpp", "source": "smollm2", "context_tokens": 1024, "sequences": 4}


async def name_a_colour(os: OS, seed: int) -> str:
    asked = [system("Answer in one word."), user("Name a colour.")]
    sampling = Sampling(temperature=1.2, seed=seed)
    return (await os.generate(asked, sampling=sampling, max_tokens=16)).text


async def verifier(os: OS) -> list[str]:
    """Ask several times and pass the answers of one word."""
    pids = [await os.spawn(name_a_colour, seed) for seed in range(6)]
    answers: list[Any] = await os.results(pids)
    for pid, answer in zip(pids, answers, strict=True):
        await os.outcome(pid, verdict="pass" if len(answer.split()) == 1 else "fail")
    return answers


def read(kernel: Kernel, path: str, objective: str) -> list[Any]:
    home: Path = kernel.files.home(kernel.table.get(1))
    return read_rows(home / path, objective, group_field="group")


def test_verified_answers_of_agents_become_rows_to_train_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        home = tmp_path / "home"
        async with llmos.boot(home=home, models={"m": MODEL}, default_model="m") as kernel:
            os: OS = kernel.os
            namespace = (await os.trace_consent()).namespace
            answers = await os.result(await os.spawn(verifier))
            good = {answer for answer in answers if len(answer.split()) == 1}
            bad = set(answers) - good
            if good:
                made = await os.trace_data([namespace])
                rows = read(kernel, made.path, "instruct")
                assert {row.messages[-1].text for row in rows} == good
                assert made.models == ("m",)
                assert len({row.group for row in rows}) == 1
                assert all(isinstance(row, ChatRow) for row in rows)
            if good and bad:
                made = await os.trace_data([namespace], objective="prefer", path="pairs.jsonl")
                (row,) = read(kernel, made.path, "prefer")
                assert isinstance(row, PreferRow)
                assert row.chosen in good and row.rejected in bad
            await os.trace_consent(namespace, is_granted=False)
            with pytest.raises(SyscallError):
                await os.trace_data([namespace], min_reward=None)

    asyncio.run(scenario())
