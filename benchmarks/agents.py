"""Agents that call a model, go off to tools and come back: whole programs, over HTTP.

Each agent reads a context of its own, and in every turn says a few words, waits for a tool, and
comes back with the tool's answer appended, so that all but the newest part of what it sends was
sent before. The same client sends the same texts to every side; ends of text are forbidden, so all
answers have the same number of tokens. A side is a server process of its own with the same model
file, threads and window; the sides run one after the other.

A full run takes minutes a side. `--only SIDE` measures one side; with `--keep FILE` what was
measured is kept there and sides that are not measured are taken from it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from benchmarks import servers
from benchmarks.form import Floor, machine, main_with
from benchmarks.workload import endless, words
from llmos.memory.model_store import ModelStore

SIDES = ("ours", "tuned", "server", "server_default", "python")
OURS_SETTINGS: Mapping[str, object] = {"weights": "shipped"}
TUNED_SETTINGS: Mapping[str, object] = {"weights": "tuned"}


class Task(NamedTuple):
    """What one agent does. `waits_s` bounds how long a tool takes."""

    agents: int = 16
    turns: int = 6
    context_words: int = 450
    result_words: int = 60
    answer_tokens: int = 48
    waits_s: tuple[float, float] = (0.2, 3.0)

    def scaled(self, scale: float) -> Task:
        """A smaller task of the same shape: fewer turns, and a shorter first context."""
        return self._replace(
            turns=max(2, round(self.turns * scale)),
            context_words=max(10, round(self.context_words * scale)),
        )

    @property
    def sizes(self) -> servers.Sizes:
        return servers.Sizes(self.agents, 2048, servers.threads())


class Run(NamedTuple):
    """One run of one side; times are seconds since all agents started together.

    `turns_s` has the end of each turn of each agent. `cached_tokens` is None where the server does
    not say.
    """

    flags: str
    turns_s: list[list[float]]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None

    @property
    def completions_s(self) -> list[float]:
        return [turns[-1] for turns in self.turns_s]

    @property
    def makespan_s(self) -> float:
        return max(self.completions_s)

    @property
    def mean_s(self) -> float:
        return statistics.mean(self.completions_s)


# --- the client -----------------------------------------------------------------------------------


async def run_agents(serving: servers.Serving, task: Task) -> Run:
    """All agents at once on one server."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=serving.url, timeout=None, limits=limits) as client:
        await complete(client, serving, [{"role": "user", "content": "Hello."}], tokens=1)
        started = time.perf_counter()
        ended = await asyncio.gather(
            *(agent(client, serving, task, number, started) for number in range(task.agents))
        )
    usages = [usage for _, used in ended for usage in used]
    cached = [usage.get("prompt_tokens_details", {}).get("cached_tokens") for usage in usages]
    return Run(
        serving.flags,
        [turns for turns, _ in ended],
        sum(usage["prompt_tokens"] for usage in usages),
        sum(usage["completion_tokens"] for usage in usages),
        None if None in cached else sum(cached),
    )


async def agent(
    client: httpx.AsyncClient, serving: servers.Serving, task: Task, number: int, started: float
) -> tuple[list[float], list[Any]]:
    """One agent from its first call to its last; the ends of its turns, and what each used."""
    draw = random.Random(number)
    question = f"{words(draw, task.context_words)}\n\nWhich tool should run next, and why?"
    messages = [{"role": "user", "content": question}]
    ends: list[float] = []
    usages: list[Any] = []
    for turn in range(task.turns):
        answer = await complete(client, serving, messages, tokens=task.answer_tokens)
        ends.append(round(time.perf_counter() - started, 3))
        usages.append(answer["usage"])
        if turn == task.turns - 1:
            break
        await asyncio.sleep(draw.uniform(*task.waits_s))
        said = answer["choices"][0]["message"]["content"]
        result = f"The tool answered: {words(draw, task.result_words)}"
        messages += [
            {"role": "assistant", "content": said},
            {"role": "user", "content": result},
        ]
    return ends, usages


async def complete(
    client: httpx.AsyncClient,
    serving: servers.Serving,
    messages: Sequence[Mapping[str, str]],
    *,
    tokens: int,
) -> Any:
    """One chat completion. Raises: httpx.HTTPStatusError."""
    body = {
        "model": serving.model,
        "messages": messages,
        "max_tokens": tokens,
        "temperature": 0.0,
        "logit_bias": endless(),
    }
    answer = await client.post("/v1/chat/completions", json=body)
    if answer.is_error:
        print(answer.text, file=sys.stderr)
    return answer.raise_for_status().json()


# --- sides ----------------------------------------------------------------------------------------


def measure_side(side: str, task: Task, binary: Path | None) -> Run | None:
    """One run of a side; None when this machine lacks it."""
    started = start(side, task, binary)
    if started is None:
        return None
    print(f"agents: {side}", file=sys.stderr)
    with started as serving:
        run = asyncio.run(run_agents(serving, task))
    print(f"agents: {side} {run.makespan_s:.1f} s, mean {run.mean_s:.1f} s", file=sys.stderr)
    return run


def start(
    side: str, task: Task, binary: Path | None
) -> AbstractContextManager[servers.Serving] | None:
    sizes, model = task.sizes, ModelStore().path("smollm2")
    if side == "ours":
        return servers.llmos(sizes, model=OURS_SETTINGS)
    if side == "tuned":
        return servers.llmos(sizes, model=TUNED_SETTINGS)
    if side == "python":
        return servers.python_server(model, sizes) if servers.has_python_server() else None
    if binary is None:
        return None
    flags = servers.separate_streams(sizes) if side == "server" else ()
    return servers.llama_server(binary, model, sizes, flags)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every side that was asked for, and the others as they were kept."""
    task = Task().scaled(options.scale)
    runs = _kept(options.keep, options.scale)
    for _ in range(options.repeats):
        for side in options.only or SIDES:
            if run := measure_side(side, task, options.server):
                runs.setdefault(side, []).append(run)
                _keep(options.keep, options.scale, runs)
    return figures(runs)


# --- figures --------------------------------------------------------------------------------------


def figures(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Medians over each side's runs, and the ratios; None where a side is missing."""
    makespans = {side: _median(runs.get(side, ()), "makespan_s") for side in SIDES}
    means = {side: _median(runs.get(side, ()), "mean_s") for side in SIDES}
    best_makespan = _least(makespans["server"], makespans["server_default"])
    best_mean = _least(means["server"], means["server_default"])
    keys: dict[str, Any] = {
        "makespan_ratio": _ratio(best_makespan, makespans["ours"]),
        "mean_ratio": _ratio(best_mean, means["ours"]),
        "python_server_ratio": _ratio(makespans["python"], makespans["ours"]),
        "tuned_ratio": _ratio(best_makespan, makespans["tuned"]),
        "tuned_mean_ratio": _ratio(best_mean, means["tuned"]),
    }
    for side in SIDES:
        if kept := runs.get(side):
            keys[f"{side}_makespan_s"] = makespans[side]
            keys[f"{side}_mean_s"] = means[side]
            keys[f"{side}_prompt_tokens"] = kept[-1].prompt_tokens
            keys[f"{side}_cached_tokens"] = kept[-1].cached_tokens
            keys[f"{side}_completion_tokens"] = kept[-1].completion_tokens
    keys["completions_s"] = {
        side: sorted(runs[side][-1].completions_s) for side in SIDES if runs.get(side)
    }
    return keys


def _median(runs: Sequence[Run], figure: str) -> float | None:
    return round(statistics.median(getattr(run, figure) for run in runs), 1) if runs else None


def _least(*values: float | None) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _ratio(theirs: float | None, ours: float | None) -> float | None:
    return None if theirs is None or ours is None else round(theirs / ours, 2)


# --- what is kept between runs --------------------------------------------------------------------


def _kept(file: Path | None, scale: float) -> dict[str, list[Run]]:
    """The runs in a file; a file of another machine or scale is refused."""
    if file is None or not file.exists():
        return {}
    kept = json.loads(file.read_text())
    here = machine()["cpu"]
    if (kept["scale"], kept["machine"]["cpu"]) != (scale, here):
        raise SystemExit(
            f"{file} has runs at scale {kept['scale']} on {kept['machine']['cpu']}; "
            f"these are at scale {scale} on {here}"
        )
    return {side: [Run(**run) for run in runs] for side, runs in kept["runs"].items()}


def _keep(file: Path | None, scale: float, runs: Mapping[str, Sequence[Run]]) -> None:
    if file is not None:
        plain = {side: [run._asdict() for run in made] for side, made in runs.items()}
        file.write_text(json.dumps({"scale": scale, "machine": machine(), "runs": plain}))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", type=Path, metavar="PATH", help="a llama-server binary")
    parser.add_argument("--only", action="append", choices=SIDES, help="measure this side")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep what was measured here")
    parser.add_argument("--scale", type=float, default=1.0, help="a smaller task of the same shape")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="runs of each side")
    return parser


if __name__ == "__main__":
    main_with(
        _options(),
        "agents",
        measure,
        [
            Floor("makespan_ratio", ">=", 1.1),
            Floor("mean_ratio", ">=", 1.4),
            Floor("python_server_ratio", ">=", 3.0),
            Floor("tuned_ratio", ">=", 1.5),
        ],
    )
