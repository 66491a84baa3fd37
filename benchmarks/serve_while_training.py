"""Agents' tokens per second and time to the first token while a fine-tune of their model runs.

Sides, alternating, each with the same number of agents and new tokens of a request:
- alone: nobody trains;
- beside a job: `Finetune` of the same base, which gives way to inference;
- beside a naive trainer: the same training as a plain process of ordinary priority, with a thread
  for each core, which nobody pauses: what running a training script next to a server means. Its
  rounds have fewer requests: they take ten times as long each.

The trainers start before the first round and stand still (STOP) while it is not their turn. Each
round has prompts of its own. Time to the first token is taken from the stream.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import llmos
from benchmarks.form import Floor, main_with
from benchmarks.workload import endless, words
from llmos.agents.handle import OS
from llmos.config import ModelConfig
from llmos.drivers.training.job import TrainJob
from llmos.memory.model_store import ModelStore
from llmos.syscalls.results import Delta
from llmos.training_view import EventLines

if TYPE_CHECKING:
    from llmos.kernel.kernel import Kernel

AGENTS = 8
REQUESTS = 12  # of each agent in a round: long enough for steps of training to be seen
NAIVE_REQUESTS = 2
NEW_TOKENS = 48
PROMPT_WORDS = 40
ROUNDS = 3
WINDOW = 512
DATA = Path(__file__).parent.parent / "tests" / "data" / "banking77_small.jsonl"
# The worker without what makes it polite: an ordinary process whose threads wait as torch has them.
NAIVE = """
import sys
from llmos.drivers.training import worker
worker.yield_processor = lambda job: None
sys.exit(worker.main(sys.argv[1:]))
"""
RECIPE: dict[str, Any] = {
    "epochs": 1000.0,
    "max_steps": 100_000,
    "batch_size": 1,  # windows of packed rows
    "eval_share": 0.0,
    "checkpoint_steps": 100_000,
    "learning_rate": 1e-4,
}


class Round(NamedTuple):
    """One round of one side; `steps` the trainer made meanwhile."""

    tokens: int
    seconds: float
    first_s: list[float]
    steps: int

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


class Trainer:
    """A trainer at work: how many steps it made so far, and how it is stopped and continued."""

    def __init__(
        self, lines: AsyncIterator[bytes], move: Callable[[bool], Awaitable[None]]
    ) -> None:
        self.steps = 0
        self.move = move
        self._moved = asyncio.Event()
        self._reading = asyncio.create_task(self._read(lines))

    async def another_step(self) -> None:
        """Wait until it has made one more step. Raises: RuntimeError when it ended."""
        self._moved.clear()
        waiting = asyncio.create_task(self._moved.wait())
        await asyncio.wait({waiting, self._reading}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            raise RuntimeError("the trainer ended before it was to")

    async def _read(self, lines: AsyncIterator[bytes]) -> None:
        events = EventLines()
        async for data in lines:
            made = sum(event["event"] == "progress" for event in events.feed(data))
            self.steps += made
            if made:
                self._moved.set()


async def agent(os: OS, prompts: list[str]) -> list[Any]:
    """Ask one after the other; new tokens, and the seconds until each answer began."""
    tokens, first_s = 0, list[float]()
    sampling = llmos.Sampling(logit_bias=endless())
    for prompt in prompts:
        started = time.perf_counter()
        has_begun = False
        async for piece in os.stream(prompt, max_tokens=NEW_TOKENS, sampling=sampling):
            if isinstance(piece, Delta):
                if not has_begun:
                    first_s.append(time.perf_counter() - started)
                has_begun = True
            else:
                tokens += piece.usage.completion_tokens
    return [tokens, first_s]


async def one_round(kernel: Kernel, number: int, requests: int, trainer: Trainer | None) -> Round:
    draw = random.Random(number)
    if trainer is not None:
        await trainer.move(True)
        await trainer.another_step()
    steps = trainer.steps if trainer else 0
    started = time.perf_counter()
    pids = [
        await kernel.os.spawn(
            agent, [f"{words(draw, PROMPT_WORDS)}. Go on." for _ in range(requests)]
        )
        for _ in range(AGENTS)
    ]
    done: list[Any] = await kernel.os.results(pids)
    seconds = time.perf_counter() - started
    steps = trainer.steps - steps if trainer else 0
    if trainer is not None:
        await trainer.move(False)
    first_s = [value for _, values in done for value in values]
    return Round(sum(tokens for tokens, _ in done), seconds, first_s, steps)


async def start_job(kernel: Kernel) -> tuple[int, Trainer]:
    """A fine-tune as agents start it, once it trains."""
    pid = await kernel.os.finetune(str(DATA), "beside", **RECIPE)

    async def move(is_on: bool) -> None:
        await kernel.os.signal(pid, "CONT" if is_on else "STOP")

    trainer = Trainer(kernel.output(pid), move)
    await trainer.another_step()
    await move(False)
    return pid, trainer


async def start_naive(folder: Path, threads: int) -> tuple[asyncio.subprocess.Process, Trainer]:
    """The same training as a process that yields to nobody, once it trains."""
    job = TrainJob(
        **RECIPE,
        base=str(ModelStore().path("smollm2")),
        base_name="smollm2",
        data=str(DATA),
        threads=threads,
        nice=0,
        owner_pid=os.getpid(),
        output=str(folder / "version"),
    )
    file = folder / "job.json"
    file.write_text(job.model_dump_json())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", NAIVE, str(file)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None

    async def move(is_on: bool) -> None:
        process.send_signal(signal.SIGCONT if is_on else signal.SIGSTOP)

    trainer = Trainer(process.stdout, move)
    await trainer.another_step()
    await move(False)
    return process, trainer


async def run(home: Path, rounds: int, requests: int) -> dict[str, list[Round]]:
    cores = len(os.sched_getaffinity(0))
    model = ModelConfig(
        source="smollm2",
        driver="llama_cpp",
        weights="BF16",
        context_tokens=WINDOW,
        sequences=AGENTS,
        threads=cores,
    )
    sides: dict[str, list[Round]] = {"alone": [], "beside": [], "naive": []}
    async with llmos.boot(home=home, models={"smollm2": model}) as kernel:
        pid, job = await start_job(kernel)
        process, naive = await start_naive(home, cores)
        try:
            trainers: dict[str, Trainer | None] = {"alone": None, "beside": job, "naive": naive}
            await one_round(kernel, -1, 1, None)
            for number in range(rounds):
                for place, (side, trainer) in enumerate(trainers.items()):
                    seed = number * len(trainers) + place
                    asked = NAIVE_REQUESTS if side == "naive" else requests
                    made = await one_round(kernel, seed, asked, trainer)
                    sides[side].append(made)
        finally:
            process.kill()
            await process.wait()
            await kernel.os.signal(pid, "KILL")
            await kernel.os.wait(pid)
    return sides


def p95_ms(rounds: Sequence[Round]) -> float:
    """Of the times to the first token of all rounds."""
    return round(statistics.quantiles([s for one in rounds for s in one.first_s], n=20)[-1] * 1e3)


def figures(sides: dict[str, list[Round]]) -> dict[str, Any]:
    rates = {name: statistics.median(r.rate for r in rounds) for name, rounds in sides.items()}
    steps = {
        name: sum(r.steps for r in rounds) / sum(r.seconds for r in rounds)
        for name, rounds in sides.items()
    }
    return {
        "ratio": round(rates["beside"] / rates["alone"], 3),
        "naive_ratio": round(rates["naive"] / rates["alone"], 3),
        **{f"{name}_tokens_per_s": round(rate, 1) for name, rate in rates.items()},
        **{f"{name}_ttft_p95_ms": p95_ms(rounds) for name, rounds in sides.items()},
        "steps_beside": sum(r.steps for r in sides["beside"]),
        "steps_per_min_beside": round(60 * steps["beside"], 1),
        "steps_per_min_naive": round(60 * steps["naive"], 1),
        "agents": AGENTS,
        "rounds": len(sides["alone"]),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rounds, requests = (1, 4) if options.quick else (ROUNDS, REQUESTS)
    with tempfile.TemporaryDirectory() as folder:
        return figures(asyncio.run(run(Path(folder), rounds, requests)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one short round")
    main_with(
        parser,
        "serve_while_training",
        measure,
        [Floor("ratio", ">=", 0.8), Floor("steps_beside", ">", 0)],
    )
