"""A day of a thousand agents in seconds, and how far such a prediction is from a real run.

First the device is calibrated: what steps of several sizes cost on the real model. Then a few
agents run through the kernel, with sleeps as their tools, and the simulation of the same programs
on the calibrated device is compared with what they took. Then a day: agents that come and go with
the hours, under several policies, by the same classes that the kernel runs; and what eviction makes
the device compute again, beside the least that any choice could (Bélády).

`--trace FILE` replays programs of yours instead of the day: a list of them, or what a kernel
recorded (`traces.py` says the form of both); nothing is predicted and run then. `--record FILE`
writes the programs as such a list: those that are replayed, or those of the real run.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import llmos
from benchmarks.calibration import calibrate, mean, shown
from benchmarks.form import Floor, main_with
from benchmarks.simulation import Costs, Outcome, Program, Simulation, Turn, belady_misses
from benchmarks.traces import read_programs, recorded_programs, write_programs
from benchmarks.workload import endless, words
from llmos.agents.handle import OS
from llmos.config import ModelConfig
from llmos.kernel.kernel import Kernel
from llmos.kernel.policies import make_policy
from llmos.syscalls.content import user
from llmos.syscalls.options import Sampling

AGENTS, TURNS, SEQUENCES, NEW_TOKENS = 12, 3, 8, 24
FIRST_WORDS, TURN_WORDS = 80, 20
WINDOW = 1024
POLICY = "priority"
DAY_AGENTS, DAY_S = 1000, 86_400.0
DAY_SEQUENCES, DAY_WINDOW = 16, 8192
# About 4.6 GB of SmolLM2's KV beside the device.
HOST_TOKENS = 200_000
DAY_TOKENS = DAY_SEQUENCES * DAY_WINDOW + HOST_TOKENS


class Ran(NamedTuple):
    """What one real agent did: tokens of each call (prompt, cached, new), and when it was done."""

    calls: Sequence[tuple[int, int, int]]
    completion_s: float


async def agent(os: OS, seed: int, waits: list[float]) -> list[list[int]]:
    """Call, wait for a tool, call again with its answer."""
    draw = random.Random(seed)
    context = await os.context_open()
    used: list[list[int]] = []
    for turn, wait_s in enumerate(waits):
        sampling = Sampling(temperature=1.0, seed=seed, logit_bias=endless())
        text = words(draw, TURN_WORDS if turn else FIRST_WORDS)
        answer = await os.generate(
            [user(text)], context=context, sampling=sampling, max_tokens=NEW_TOKENS
        )
        usage = answer.usage
        used.append([usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens])
        await os.sleep(wait_s)
    return used


def tool_waits() -> list[list[float]]:
    """How long each agent's tools take; the last call is followed by none."""
    draw = random.Random("tools")
    return [[*(draw.uniform(0.2, 2.0) for _ in range(TURNS - 1)), 0.0] for _ in range(AGENTS)]


def _settings() -> dict[str, Any]:
    model = ModelConfig(
        source="smollm2", driver="llama_cpp", context_tokens=WINDOW, sequences=SEQUENCES
    )
    # The simulation knows no guesses at what follows.
    return {"models": {"smollm2": model}, "policy": POLICY, "speculation": False}


async def calibrated(home: Path) -> Costs:
    """The device's costs, of a kernel of their own."""
    async with llmos.boot(home=home, **_settings()) as kernel:
        return await calibrate(kernel)


async def real_run(home: Path, record: Path | None) -> tuple[Costs, list[Ran], float]:
    """The device's costs, and what the agents did and how long it took."""
    async with llmos.boot(home=home, **_settings()) as kernel:
        before = await calibrate(kernel)
        ran, makespan_s = await agents(kernel)
        print(f"simulate: the real run, {kernel.devices.infos()[0]}", file=sys.stderr)
        if record is not None:
            write_programs(record, recorded_programs(kernel.chrome_trace()))
    return mean(before, await calibrated(home)), ran, makespan_s


async def agents(kernel: Kernel) -> tuple[list[Ran], float]:
    started = time.perf_counter()

    async def one(number: int, waits: list[float]) -> Ran:
        pid = await kernel.os.spawn(agent, number, waits)
        used: Any = await kernel.os.result(pid)
        return Ran([tuple(call) for call in used], time.perf_counter() - started)

    ran = await asyncio.gather(*(one(i, waits) for i, waits in enumerate(tool_waits())))
    return ran, time.perf_counter() - started


def same_programs(ran: Sequence[Ran]) -> list[Program]:
    """The real run's programs: their sizes and their tools' times, and no other time."""
    programs: list[Program] = []
    # The chat template's beginning is computed once.
    shared = max(one.calls[0][1] for one in ran)
    for number, (one, waits) in enumerate(zip(ran, tool_waits(), strict=True)):
        known, turns = 0, list[Turn]()
        for (prompt, _, new), wait_s in zip(one.calls, waits, strict=True):
            turns.append(Turn(prompt - known, new, wait_s))
            known = prompt + new
        programs.append(Program(number * 1e-3, turns, shared_tokens=shared))
    return programs


def day(agents: int = DAY_AGENTS, seconds: float = DAY_S) -> list[Program]:
    """Agents of very different lengths, most of them about noon; the same on every machine."""
    draw = random.Random("day")
    programs: list[Program] = []
    while len(programs) < agents:
        arrived_s = draw.uniform(0.0, 0.95 * seconds)
        if draw.random() > 0.5 - 0.5 * math.cos(2 * math.pi * arrived_s / seconds):
            continue
        count = min(60, max(2, round(draw.lognormvariate(2.7, 0.8))))
        turns = [
            Turn(
                prompt_tokens=round(min(800, draw.lognormvariate(4.2, 0.6))) + 400 * (turn == 0),
                new_tokens=round(min(300, max(8, draw.lognormvariate(3.9, 0.7)))),
                wait_s=min(600.0, draw.lognormvariate(1.0, 1.2)),
            )
            for turn in range(count)
        ]
        programs.append(Program(arrived_s, turns))
    return sorted(programs, key=lambda program: program.arrived_s)


def simulated_day(programs: Sequence[Program], costs: Costs, policy: str) -> Outcome:
    return Simulation(
        programs,
        costs=costs,
        policy=make_policy(policy),
        sequences=DAY_SEQUENCES,
        host_tokens=HOST_TOKENS,
    ).run()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    if options.trace is not None:
        return replay(options.trace, options.record)
    with tempfile.TemporaryDirectory() as folder:
        costs, ran, makespan_s = asyncio.run(real_run(Path(folder), options.record))
    predicted = Simulation(
        same_programs(ran),
        costs=costs,
        policy=make_policy(POLICY),
        sequences=SEQUENCES,
        host_tokens=HOST_TOKENS,
    ).run()
    completion_s = _mean([one.completion_s for one in ran])
    guess_s = _mean(predicted.completion_s)
    makespan_error = abs(predicted.ended_s - makespan_s) / makespan_s
    completion_error = abs(guess_s - completion_s) / completion_s
    return {
        **_days(costs),
        "error": round(max(makespan_error, completion_error), 3),
        "makespan_error": round(makespan_error, 3),
        "completion_error": round(completion_error, 3),
        "makespan_s": round(makespan_s, 2),
        "predicted_makespan_s": round(predicted.ended_s, 2),
        "completion_s": round(completion_s, 2),
        "predicted_completion_s": round(guess_s, 2),
        "computed_tokens": sum(p - cached for one in ran for p, cached, _ in one.calls),
        "predicted_tokens": predicted.prompt_tokens,
        **shown(costs),
    }


def replay(path: Path, record: Path | None) -> dict[str, Any]:
    """The programs of a file under each policy, on a device as fast as this machine's."""
    programs = read_programs(path)
    if record is not None:
        write_programs(record, programs)
    with tempfile.TemporaryDirectory() as folder:
        costs = asyncio.run(calibrated(Path(folder)))
    return {**replayed(programs, costs), **shown(costs)}


def replayed(programs: Sequence[Program], costs: Costs) -> dict[str, Any]:
    """What programs would take on a device; there is no run to compare with."""
    figures, ended_s = _compared(programs, costs)
    calls = sum(len(program.turns) for program in programs)
    sizes = {"agents": len(programs), "calls": calls, "simulated_s": round(ended_s, 1)}
    return {**figures, **sizes, "error": None}


def _days(costs: Costs) -> dict[str, Any]:
    programs = day()
    figures, _ = _compared(programs, costs)
    return {**figures, "agents": len(programs), "simulated_s": DAY_S}


def _compared(programs: Sequence[Program], costs: Costs) -> tuple[dict[str, Any], float]:
    """Figures of programs under several policies, and when the last ended under the first one."""
    figures: dict[str, Any] = {"wall_s": 0.0}
    ended_s = 0.0
    for policy in (POLICY, "fifo", "las", "fair"):
        print(f"simulate: {len(programs)} programs under {policy}", file=sys.stderr)
        started = time.perf_counter()
        outcome = simulated_day(programs, costs, policy)
        wall_s = round(time.perf_counter() - started, 1)
        figures["wall_s"] = max(figures["wall_s"], wall_s)  # of the slowest
        times = sorted(outcome.completion_s)
        figures[f"{policy}_mean_s"] = round(_mean(times), 1)
        figures[f"{policy}_p95_s"] = round(times[int(0.95 * len(times))], 1)
        if policy == POLICY:
            ended_s = outcome.ended_s
            on_device = DAY_SEQUENCES * DAY_WINDOW
            figures |= {
                "busy": round(outcome.busy_s / outcome.ended_s, 3),
                "new_tokens": outcome.new_tokens,
                "again_tokens": outcome.again_tokens,
                "restored_tokens": outcome.restored_tokens,
                "again_tokens_at_least": _least(outcome, DAY_TOKENS),
                "again_tokens_at_least_on_the_device": _least(outcome, on_device),
            }
    return figures, ended_s


def _least(outcome: Outcome, capacity_tokens: int) -> int | None:
    """The optimum of eviction; None where one context alone is larger than the room."""
    if any(access.tokens > capacity_tokens for access in outcome.accesses):
        return None
    return belady_misses(outcome.accesses, capacity_tokens)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--trace", type=Path, metavar="FILE", help="replay the programs in it")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the programs to it")
    main_with(parser, "simulate", measure, [Floor("wall_s", "<", 60.0), Floor("error", "<", 0.2)])
