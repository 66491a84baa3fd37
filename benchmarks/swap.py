"""From `ModelPromote` to the first token of the new version, while agents generate all along.

Agents on one model ask again and again; meanwhile adapter versions that no device has seen yet are
promoted one after another, now and then a promotion is rolled back. The clock runs from the
call of `ModelPromote` to the first piece of text of a stream that is asked for once it has
returned; it includes reading and checking the files, converting them to the driver's form, and the
prompt of that stream beside the agents'. Every answer must say which version gave it: the one that
served when it was asked for, or a later one. A call that fails, or that an old version answers, is
lost. With `--full` a promotion of full weights is measured too: a second device opens meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llmos
from benchmarks.adapters import write_adapters
from benchmarks.form import Floor, main_with
from llmos.agents.handle import OS
from llmos.config import ModelConfig
from llmos.memory.model_store import ModelStore
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.learning_results import ModelVersion
from llmos.syscalls.results import Delta, Generated

if TYPE_CHECKING:
    from llmos.kernel.kernel import Kernel

AGENTS = 4
SWAPS = 10
NEW_TOKENS = 24
DRIVERS = ("llama_cpp", "torch")


class Served:
    """Which versions may answer a call: `order` is what has served, one after another.

    A change is announced when it begins, from when on a call may find it, and certain once it has
    returned, from when on every call must.
    """

    def __init__(self, now: str | None = None) -> None:
        self.order: list[str | None] = [now]
        self.certain = 0  # the place of the last that every call must find
        self.is_over = False
        self.calls = 0
        self.lost: list[str] = []

    def announce(self, version: str | None) -> None:
        self.order.append(version)

    def settle(self) -> None:
        self.certain = len(self.order) - 1

    def check(self, since: int, adapter: str | None) -> None:
        """Count an answer to a call that was made when `certain` was `since`."""
        self.calls += 1
        if adapter not in self.order[since:]:
            self.lost.append(f"{adapter} answered for {self.order[since]}")


async def agent(os: OS, served: Served, number: int) -> None:
    """Ask until it is over."""
    turn = 0
    while not served.is_over:
        since = served.certain
        try:
            answer = await os.generate(
                f"Agent {number}, turn {turn}: describe the weather.", max_tokens=NEW_TOKENS
            )
            served.check(since, answer.adapter)
        except SyscallError as problem:
            served.calls += 1
            served.lost.append(str(problem))
        turn += 1


async def first_token_s(os: OS, served: Served) -> float:
    """Seconds until a stream's first piece; its answer is checked too."""
    started, first, since = time.perf_counter(), 0.0, served.certain
    async for piece in os.stream("Say hello.", max_tokens=4):
        if isinstance(piece, Delta) and not first:
            first = time.perf_counter()
        if isinstance(piece, Generated):
            served.check(since, piece.adapter)
    return first - started


async def swapped(os: OS, name: str, served: Served) -> tuple[float, float]:
    """Promote a version: seconds of the promotion, and to the new version's first token."""
    started = time.perf_counter()
    served.announce(name)
    await os.model_promote(name)
    served.settle()
    promoted_s = time.perf_counter() - started
    return promoted_s, promoted_s + await first_token_s(os, served)


async def side(
    kernel: Kernel, driver: str, names: Sequence[str], folders: Sequence[Path]
) -> dict[str, Any]:
    """One driver's figures."""
    registry = kernel.registry()
    for name, folder in zip(names, folders, strict=True):
        version = ModelVersion(name=name, kind="adapter", base="smollm2", path=str(folder))
        await asyncio.to_thread(registry.add, version)
    served = Served()
    await kernel.os.generate("Hello", max_tokens=2)  # opens the device
    agents = [asyncio.create_task(agent(kernel.os, served, n)) for n in range(AGENTS)]
    idle_s = [await first_token_s(kernel.os, served) for _ in range(3)]
    found: list[tuple[float, float]] = []
    for place, name in enumerate(names):
        found.append(await swapped(kernel.os, name, served))
        if place % 3 == 2:
            served.announce(names[place - 1])
            await kernel.os.model_rollback("smollm2")
            served.settle()
            await first_token_s(kernel.os, served)
    served.is_over = True
    await asyncio.gather(*agents)
    for problem in served.lost[:5]:
        print(f"{driver}: lost: {problem}")
    return {
        f"{driver}_swap_s": round(statistics.median(total for _, total in found), 3),
        f"{driver}_slowest_swap_s": round(max(total for _, total in found), 3),
        f"{driver}_promote_s": round(statistics.median(promoted for promoted, _ in found), 3),
        f"{driver}_first_token_without_swap_s": round(statistics.median(idle_s), 3),
        f"{driver}_calls": served.calls,
        f"{driver}_calls_lost": len(served.lost),
    }


async def full_side(kernel: Kernel, driver: str) -> dict[str, Any]:
    """The same for full weights: the last adapter, merged."""
    last = kernel.registry().promoted("smollm2")
    assert last is not None
    merged = await kernel.os.model_export(last)
    version = ModelVersion(name=f"{last}-full", kind="full", base="smollm2", path=merged.path)
    await asyncio.to_thread(kernel.registry().add, version)
    served = Served(last)
    agents = [asyncio.create_task(agent(kernel.os, served, n)) for n in range(AGENTS)]
    started = time.perf_counter()
    served.announce(None)  # full weights serve without an adapter
    await kernel.os.model_promote(version.name)
    served.settle()
    await first_token_s(kernel.os, served)
    took_s = time.perf_counter() - started
    served.is_over = True
    await asyncio.gather(*agents)
    return {
        f"{driver}_full_swap_s": round(took_s, 2),
        f"{driver}_full_calls": served.calls,
        f"{driver}_full_calls_lost": len(served.lost),
    }


async def measure(drivers: Sequence[str], swaps: int, has_full: bool) -> dict[str, Any]:
    base = ModelStore().path("smollm2")
    figures: dict[str, Any] = {"agents": AGENTS, "swaps": swaps}
    with tempfile.TemporaryDirectory() as scratch:
        folders = write_adapters(Path(scratch) / "trained", base, swaps)
        for driver in drivers:
            model = ModelConfig.model_validate(
                {
                    "source": "smollm2",
                    "driver": driver,
                    "context_tokens": 512,
                    "sequences": AGENTS + 2,
                    **({"weights": "shipped"} if driver == "llama_cpp" else {}),
                }
            )
            settings = {"home": Path(scratch) / driver, "models": {"chat": model}}
            async with llmos.boot(default_model="chat", **settings) as kernel:
                names = [f"{driver.replace('_', '-')}-{n}" for n in range(swaps)]
                figures |= await side(kernel, driver, names, folders)
                if has_full:
                    figures |= await full_side(kernel, driver)
    figures["calls_lost"] = sum(figures[f"{driver}_calls_lost"] for driver in drivers)
    figures["swap_s"] = max(figures[f"{driver}_swap_s"] for driver in drivers)
    return figures


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure as the options say."""
    swaps = 4 if options.quick else SWAPS
    return asyncio.run(measure(options.driver or DRIVERS, swaps, options.full))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer promotions")
    parser.add_argument("--full", action="store_true", help="full weights too")
    parser.add_argument("--driver", action="append", choices=DRIVERS, help="only this one")
    main_with(parser, "swap", run, [Floor("calls_lost", "==", 0), Floor("swap_s", "<", 1.0)])
