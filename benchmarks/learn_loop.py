"""An agent that calls tools, before and after it learned from its own successes.

`llmos learn`'s loop on the default model and the tool agent's tasks: the base tries new tasks, the
attempts whose call returned the right result are trained on, versions that are better on held-out
tasks are promoted. Nothing is written by hand but the tasks.

Before and after are measured on `test` tasks, whose sentences, numbers and items occur in no other
split, each task once, greedily, from the task alone: in the model's own words, and again held to
the form of a call, which is the most that constraints can do without learning. The after side has
no help that the before side did not have.

With `--folder` everything is kept, and the same command goes on where it was cut.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llmos
from benchmarks.form import Floor, main_with
from llmos.agents.learn_statistics import gain, success_rate
from llmos.agents.tool_tasks import TOOLS
from llmos.config import ModelConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos.kernel.kernel import Kernel

TEST_TASKS = 160
PLAN: Mapping[str, Any] = {
    "practice": "tool-practice",
    "name": "tool-agent",
    "rounds": 3,
    "tasks": 96,
    "eval_tasks": 80,
    "settings": {"epochs": 3.0, "max_steps": 36, "seed": 0},
}
QUICK: Mapping[str, Any] = {
    "rounds": 1,
    "tasks": 32,
    "eval_tasks": 24,
    "min_rows": 4,
    "settings": {"epochs": 3.0, "max_steps": 10, "seed": 0},
}


async def tested(kernel: Kernel, count: int, *, is_held: bool) -> dict[str, Any]:
    """The outcomes of the version in use on the test tasks, and of which kinds they are."""
    pid = await kernel.os.spawn("tool-practice", split="test", count=count, seed=0, is_held=is_held)
    value: Any = await kernel.os.result(pid)
    return {
        "outcomes": [one["reward"] for one in value["episodes"]],
        "kinds": [one["kind"] for one in value["episodes"]],
        "version": value["adapter"],
    }


async def run(folder: Path, plan: Mapping[str, Any], test_tasks: int) -> dict[str, Any]:
    """Test, learn, test; what is in the folder already is not done again."""
    model = ModelConfig(
        source="smollm2",
        driver="llama_cpp",
        weights="BF16",
        context_tokens=768,
        sequences=32,
        threads=len(os.sched_getaffinity(0)),
    )
    kept = folder / "tested.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}

    async def test(kernel: Kernel, when: str) -> None:
        for how in ("free", "held"):
            if f"{how}_{when}" not in found:
                outcome = await tested(kernel, test_tasks, is_held=how == "held")
                found[f"{how}_{when}"] = outcome
                kept.write_text(json.dumps(found))

    async with llmos.boot(home=folder / "home", models={"smollm2": model}) as kernel:
        for tool in TOOLS:
            kernel.tools.add(tool)
        await test(kernel, "before")
        pid = await kernel.os.spawn("learner", str(folder / "loop"), **plan)
        learned: Any = await kernel.os.result(pid)
        for how in ("free", "held"):  # of another version, where the loop went on since
            if found.get(f"{how}_after", {}).get("version") != learned["version"]:
                found.pop(f"{how}_after", None)
        await test(kernel, "after")
    return {**found, "learned": learned, "rounds": rounds_of(folder / "loop" / "loop.jsonl")}


def rounds_of(record: Path) -> list[dict[str, Any]]:
    """What each round did, from the loop's record."""
    rounds: dict[int, dict[str, Any]] = {}
    for line in record.read_text().splitlines():
        event = json.loads(line)
        if "round" not in event:
            continue
        row = rounds.setdefault(event["round"], {"round": event["round"], "seconds": 0.0})
        row["seconds"] = round(row["seconds"] + event.get("seconds", 0.0), 1)
        match event["event"]:
            case "measured":
                row["dev_success"] = round(success_rate(event["outcomes"]).value, 3)
            case "collected":
                row |= {key: event[key] for key in ("tried", "attempts", "solved", "rows")}
            case "trained":
                row |= {"version": event["version"], "rows_trained": event["rows"]}
            case "judged":
                row |= {"verdict": event["verdict"], "gain": event["gain"]}
    return list(rounds.values())


def _by_kind(side: Mapping[str, Any]) -> dict[str, str]:
    pairs = list(zip(side["kinds"], side["outcomes"], strict=True))
    return {
        kind: f"{sum(o for k, o in pairs if k == kind):.0f}/{sum(k == kind for k, _ in pairs)}"
        for kind in sorted(set(side["kinds"]))
    }


def figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """Rates with their intervals, and by how much the after side is beyond the before side's."""
    report: dict[str, Any] = {}
    for how, name in (("free", ""), ("held", "held_")):
        before, after = found[f"{how}_before"], found[f"{how}_after"]
        for when, side in (("before", before), ("after", after)):
            rate = success_rate(side["outcomes"])
            report |= {
                f"{name}{when}": round(rate.value, 3),
                f"{name}{when}_low": round(rate.low, 3),
                f"{name}{when}_high": round(rate.high, 3),
            }
        change = gain(before["outcomes"], after["outcomes"])
        report[f"{name}gain"] = round(change.value, 3)
        report[f"{name}gain_low"] = round(change.low, 3)
        report[f"{name}clearance"] = round(
            report[f"{name}after_low"] - report[f"{name}before_high"], 3
        )
    report |= {
        "test_tasks": len(found["free_before"]["outcomes"]),
        "versions_promoted": sum(row.get("verdict") == "promoted" for row in found["rounds"]),
        "rows_learned": max((row.get("rows_trained", 0) for row in found["rounds"]), default=0),
        "seconds_of_stages": round(sum(row["seconds"] for row in found["rounds"]), 1),
        "rounds": found["rounds"],
        "kinds_before": _by_kind(found["free_before"]),
        "kinds_after": _by_kind(found["free_after"]),
    }
    return report


def measure(options: argparse.Namespace) -> dict[str, Any]:
    plan = {**PLAN, **(QUICK if options.quick else {})}
    for name in ("rounds", "seconds"):
        if getattr(options, name) is not None:
            plan[name] = getattr(options, name)
    tasks = 40 if options.quick else TEST_TASKS
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if options.folder is None else options.folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        found = asyncio.run(run(folder, plan, tasks))
    return figures(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one small round")
    parser.add_argument("--rounds", type=int, help="most rounds")
    parser.add_argument("--seconds", type=float, help="most seconds of the loop's stages")
    parser.add_argument("--folder", type=Path, help="keep everything here, and go on from it")
    main_with(
        parser,
        "learn_loop",
        measure,
        [Floor("clearance", ">", 0), Floor("gain_low", ">", 0), Floor("held_clearance", ">", 0)],
    )
