"""Many agents of mixed programs under overload and chaos: nothing may hang, leak or grow.

As many slots as agents keep starting programs, four times as many as the device can serve: queues
fill and calls are refused. Meanwhile random processes are killed, terminated, stopped, continued
and reniced, streams are left in the middle, and the device fails at random. Then the chaos ends,
everybody may finish, and the books must be right: every call was answered, refused with a code, or
ended with its process; nobody waits; the device holds no sequence and no token of KV but those that
the kernel says it keeps; the process is no larger than after the first third.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil

from benchmarks.form import Floor, main_with
from benchmarks.workload import words
from llmos.agents.handle import OS
from llmos.booting import settings_of
from llmos.config import Config, ModelConfig
from llmos.drivers.contract import DeviceError, Feed, LanguageModel, Sampled
from llmos.kernel.kernel import Kernel
from llmos.syscalls.calls import SignalName
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import ChoiceConstraint

T = TypeVar("T")

OVERLOAD = 4.0
ACTION_S = 0.03
_ACTIONS: Sequence[SignalName | None] = ("KILL", "KILL", "TERM", "STOP", "STOP", None)


# --- the books ------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What became of every call that the programs made; they share it, being in one process."""

    asked: int = 0
    answered: int = 0
    ended_with_process: int = 0
    streams_left: int = 0  # by a reader that had heard a part
    refused: Counter[str] = field(default_factory=Counter[str])
    programs: Counter[str] = field(default_factory=Counter[str])
    actions: Counter[str] = field(default_factory=Counter[str])

    def clear(self) -> None:
        """Begin new books."""
        self.asked = self.answered = self.ended_with_process = self.streams_left = 0
        for counter in (self.refused, self.programs, self.actions):
            counter.clear()

    @property
    def unanswered(self) -> int:
        return self.asked - self.answered - self.ended_with_process - self.refused.total()

    async def of(self, call: Awaitable[T]) -> T | None:
        """The result of a call; None when it was refused."""
        self.asked += 1
        try:
            result = await call
        except SyscallError as problem:
            self.refused[problem.code] += 1
            return None
        except BaseException:
            self.ended_with_process += 1
            raise
        self.answered += 1
        return result


tally = Tally()


class Faulty:
    """A language model that fails at random steps; satisfies `LanguageModel` by passing all on."""

    def __init__(self, driver: LanguageModel, draw: random.Random, rate: Callable[[], float]):
        self._driver = driver
        self._draw = draw
        self._rate = rate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def step(self, feeds: Sequence[Feed]) -> list[Sampled]:
        if self._draw.random() < self._rate():
            tally.actions["fault"] += 1
            raise DeviceError("a fault on purpose", is_fatal=self._draw.random() < 0.5)
        return self._driver.step(feeds)

    def held_tokens(self) -> list[int]:
        """How many tokens of KV each sequence holds; only while the device is idle."""
        return [self._driver.length(one) for one in range(self._driver.info.sequences)]


# --- programs -------------------------------------------------------------------------------------


async def asker(os: OS, seed: int) -> None:
    """One question."""
    await tally.of(os.generate(_text(seed), max_tokens=12))


async def talker(os: OS, seed: int) -> None:
    """A conversation in a context, a fork of it, and both continued at once."""
    context = await tally.of(os.context_open(_text(seed)))
    if context is None:
        return
    await tally.of(os.generate(context=context, max_tokens=8))
    fork = await tally.of(os.context_fork(context))
    both = [one for one in (context, fork) if one is not None]
    await asyncio.gather(
        *(tally.of(os.generate("Go on.", context=one, max_tokens=8)) for one in both)
    )


async def leaver(os: OS, seed: int) -> None:
    """A stream that its reader leaves after a few pieces."""

    async def read() -> None:
        pieces: Any = os.stream(_text(seed), max_tokens=64)
        left = 1 + seed % 4
        async with aclosing(pieces):
            async for _ in pieces:
                left -= 1
                if not left:
                    tally.streams_left += 1
                    return

    await tally.of(read())


async def chooser(os: OS, seed: int) -> None:
    """A constrained answer."""
    constraint = ChoiceConstraint(choices=("left", "right", "neither"))
    await tally.of(os.generate(_text(seed), constraint=constraint, max_tokens=8))


async def parent(os: OS, seed: int) -> None:
    """Two children that report by mail, and are reaped."""
    pids = [await tally.of(os.spawn(child, os.pid, seed + n)) for n in range(2)]
    living = [pid for pid in pids if pid is not None]
    for pid in living:
        await tally.of(os.receive(sender=pid, timeout_s=1.0))
    for pid in living:
        await tally.of(os.wait(pid))


async def child(os: OS, reports_to: int, seed: int) -> None:
    """Sleep a little, report, ask."""
    await tally.of(os.sleep(0.01 * (seed % 7)))
    await tally.of(os.send(reports_to, {"seed": seed}))
    await asker(os, seed)


MIX = (asker, asker, talker, leaver, chooser, parent)


def _text(seed: int) -> str:
    draw = random.Random(seed)
    return f"{words(draw, 5 + seed % 20)}. Say a word."


# --- a run ----------------------------------------------------------------------------------------


class Soak:
    """One run over one kernel."""

    def __init__(self, kernel: Kernel, *, agents: int, seconds: float, seed: int = 0) -> None:
        self._os = kernel.os
        self._agents = agents
        self._seconds = seconds
        self._draw = random.Random(seed)
        self._is_over = False
        self._stopped: dict[int, float] = {}
        self._started = time.monotonic()

    async def calibrate(self, programs: int = 32) -> float:
        """Programs per second that the device serves without chaos."""
        started = time.monotonic()
        await asyncio.gather(*(self._program(number) for number in range(programs)))
        return programs / (time.monotonic() - started)

    async def run(self, *, per_s: float, drain_s: float) -> dict[str, Any]:
        """Chaos for the time of the run, then quiet; what was found."""
        self._started = time.monotonic()
        pause_s = self._agents / (OVERLOAD * per_s)
        slots = [asyncio.create_task(self._slot(number, pause_s)) for number in range(self._agents)]
        chaos = asyncio.create_task(self._chaos())
        await asyncio.sleep(self._seconds / 3)
        early_bytes = _resident()
        await asyncio.sleep(self._seconds * 2 / 3)
        late_bytes = _resident()
        self._is_over = True
        await chaos
        await self._continue(everybody=True)
        _, hanging = await asyncio.wait(slots, timeout=drain_s)
        waiting = [row.waiting_on or row.state for row in await self._os.ps() if row.pid != 1]
        for task in hanging:
            task.cancel()
        for task in await asyncio.gather(*slots, return_exceptions=True):
            if isinstance(task, Exception):
                raise task
        return {
            "hanging": len(hanging),
            "still_waiting": waiting[:5],
            "grown_share": round(late_bytes / early_bytes - 1, 3),
            "resident_bytes": late_bytes,
        }

    async def _slot(self, number: int, pause_s: float) -> None:
        """Start programs one after the other until the run is over."""
        draw = random.Random(number)
        while not self._is_over:
            await self._program(draw.randrange(1_000_000))
            await asyncio.sleep(draw.uniform(0, 2 * pause_s))

    async def _program(self, seed: int) -> None:
        program = MIX[seed % len(MIX)]
        nice = seed % 21 - 10
        pid = await tally.of(self._os.spawn(program, seed, nice=nice))
        if pid is not None and (ended := await tally.of(self._os.wait(pid))) is not None:
            tally.programs[ended.status] += 1

    async def _chaos(self) -> None:
        """Act on a random process, again and again; who was stopped is continued later."""
        until = self._started + self._seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(ACTION_S, left))
            rows = [row for row in await self._os.ps() if row.pid != 1]
            if rows:
                await self._act(self._draw.choice(rows).pid)
            await self._continue(everybody=False)

    async def _act(self, pid: int) -> None:
        action = self._draw.choice(_ACTIONS)
        tally.actions[action or "nice"] += 1
        if action is None:
            await tally.of(self._os.nice(self._draw.randint(-20, 19), pid=pid))
            return
        if action == "STOP":
            self._stopped[pid] = time.monotonic() + self._draw.uniform(0.05, 1.0)
        await tally.of(self._os.signal(pid, action, deadline_s=0.5))

    async def _continue(self, *, everybody: bool) -> None:
        now = time.monotonic()
        for pid in [pid for pid, due in self._stopped.items() if everybody or due <= now]:
            del self._stopped[pid]
            await tally.of(self._os.signal(pid, "CONT"))


async def soak(
    config: Config, *, agents: int, seconds: float, drain_s: float, fault_rate: float
) -> dict[str, Any]:
    """A whole soak on a kernel of its own; the figures that a benchmark shows."""
    tally.clear()
    draw = random.Random(1)
    rate = [0.0]
    opened: list[Faulty] = []
    async with _kernel(config, agents, lambda: rate[0], draw, opened) as kernel:
        run = Soak(kernel, agents=agents, seconds=seconds)
        per_s = await run.calibrate()
        print(f"soak: {per_s:.1f} programs/s without chaos", file=sys.stderr)
        rate[0] = fault_rate
        found = await run.run(per_s=per_s, drain_s=drain_s)
        rate[0] = 0.0
        device = next(one for one in (await kernel.os.stat()).devices if one.name == "model")
        left = [row for row in await kernel.os.ps() if row.pid != 1]
        held = opened[-1].held_tokens()
        whole = await _fills(kernel, config)
    refused = {code: tally.refused[code] for code in sorted(tally.refused)}
    return {
        "lost_wakeups": found["hanging"] + len(left) + device.running + device.waiting,
        "unanswered": tally.unanswered,
        "leaked_sequences": sum(map(bool, held)) - device.cached_sequences,
        "leaked_kv_tokens": sum(held) - device.kv_tokens_used,
        "usable_sequences": whole,
        **found,
        "asked": tally.asked,
        "answered": tally.answered,
        "ended_with_process": tally.ended_with_process,
        "streams_left": tally.streams_left,
        **{f"refused_{code}": count for code, count in refused.items()},
        **{f"programs_{status}": count for status, count in sorted(tally.programs.items())},
        **{f"chaos_{name.lower()}": count for name, count in sorted(tally.actions.items())},
        "devices_opened": len(opened),
        "programs_per_s_alone": round(per_s, 1),
        "agents": agents,
        "seconds": seconds,
    }


@asynccontextmanager
async def _kernel(
    config: Config,
    agents: int,
    rate: Callable[[], float],
    draw: random.Random,
    opened: list[Faulty],
) -> AsyncGenerator[Kernel]:
    """A kernel whose device fails at a rate, and whose queue is shorter than the crowd."""
    settings = settings_of(config)
    setting = settings.models["model"]

    def open_faulty() -> Any:
        opened.append(Faulty(setting.open(), draw, rate))
        return opened[-1]

    models = {"model": replace(setting, open=open_faulty)}
    kernel = Kernel(
        replace(settings, models=models, max_queued=max(agents // 4, 32)), bind=OS, programs={}
    )
    try:
        yield kernel
    finally:
        await asyncio.shield(kernel.stop())


async def _fills(kernel: Kernel, config: Config) -> int:
    """How many generations fill their whole window at the same time: as many as sequences."""
    model = config.models["model"]
    start = await kernel.os.tokenize(words(random.Random(0), model.context_tokens), model="model")
    text = words(random.Random(0), model.context_tokens * model.context_tokens // start.count // 2)
    made = await asyncio.gather(
        *(
            tally.of(kernel.os.generate(f"{number} {text}", max_tokens=4))
            for number in range(model.sequences)
        )
    )
    return sum(one is not None for one in made)


def _resident() -> int:
    return psutil.Process().memory_info().rss


def config_for(home: Path, driver: Any, *, window: int = 256, sequences: int = 16) -> Config:
    """One model, a short window, and a trace whose size is soon reached."""
    source = "smollm2" if driver == "llama_cpp" else "scripted"
    options: dict[str, Any] = {}
    if driver == "llama_cpp":
        # In streams every sequence holds its tokens alone, so that they can be summed.
        options = {"weights": "shipped", "kv_layout": "streams"}
    model = ModelConfig(
        source=source, driver=driver, context_tokens=window, sequences=sequences, **options
    )
    return Config(home=home, models={"model": model}, default_model="model", trace_events=2_000)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(
            soak(
                config_for(Path(folder), options.driver),
                agents=options.agents,
                seconds=options.seconds,
                drain_s=300.0,
                fault_rate=options.fault_rate,
            )
        )


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--agents", type=int, default=500, metavar="N", help="at the same time")
    parser.add_argument("--seconds", type=float, default=600.0, metavar="S", help="of chaos")
    parser.add_argument("--driver", choices=("llama_cpp", "scripted"), default="llama_cpp")
    parser.add_argument(
        "--fault-rate", type=float, default=0.002, metavar="P", help="of a step, to fail"
    )
    return parser


if __name__ == "__main__":
    main_with(
        _options(),
        "soak",
        measure,
        [
            Floor("lost_wakeups", "==", 0),
            Floor("unanswered", "==", 0),
            Floor("leaked_sequences", "==", 0),
            Floor("leaked_kv_tokens", "==", 0),
            Floor("usable_sequences", "==", 16),
            Floor("grown_share", "<=", 0.1),
        ],
    )
