"""The tool agent's practice: tasks whose right result is known, tried and judged.

This is what the learner (`learner.py`) asks of any program that an agent learns by. Two ways:
- measuring: each task once, greedily, from the task alone, as the agent works in everyday use;
- collecting: several attempts at a temperature, held to the form of a call and shown attempts that
  succeeded before. The first may call any tool; the next ones go to the tasks still unsolved and
  are held to one tool after the other, so that tools which the model would never choose are found
  too. What is kept has the task alone as its prompt: the model learns to do without what helped.

Source: Zelikman et al., "STaR: Bootstrapping Reasoning With Reasoning", 2022; Singh et al., "Beyond
Human Data: Scaling Self-Training for Problem-Solving with Language Models", 2024.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from llmos.agents.handle import OS
from llmos.agents.shots import by_nearness
from llmos.agents.tool_agent import TOOL_NAMES, conversation, offered, tool_agent
from llmos.agents.tool_tasks import Split, ToolTask, tasks
from llmos.syscalls.content import assistant
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.results import ToolSpec
from llmos.syscalls.values import JsonObject

_SHOWN = 2  # earlier successes in a prompt
_REMEMBERED = 60  # the newest, that may be shown


async def tool_practice(
    os: OS,
    *,
    split: Split,
    count: int,
    seed: int = 0,
    attempts: int = 1,
    temperature: float = 0.0,
    is_held: bool | None = None,
    worked: Sequence[JsonObject] = (),
    model: str | None = None,
    adapter: str | None = None,
) -> JsonObject:
    """Let the agent try `count` tasks of a split, and judge what it did.

    Each attempt is a process; those of one turn run together. `is_held` None: held to the form of a
    call when collecting, which is when there are several attempts. `worked` are `{"task", "said"}`
    of earlier successes.
    Returns `{"episodes", "tokens", "adapter"}`; an episode is `{"task", "kind", "said", "reward",
    "messages"}`, whose messages are what there is to learn from it.
    """
    specs = await offered(os, TOOL_NAMES)
    unsolved = tasks(split, count, seed=seed)
    is_held = attempts > 1 if is_held is None else is_held
    known, episodes, tokens = [*worked], list[JsonObject](), 0
    used: str | None = None
    for turn in range(attempts):
        done = await _turn(
            os,
            unsolved,
            known,
            held=_held_to(turn, seed) if is_held else None,
            seed=seed * 1000 + turn,
            options={"temperature": temperature, "model": model, "adapter": adapter},
        )
        solved: set[str] = set()
        for task, outcome in zip(unsolved, done, strict=True):
            tokens, used = tokens + outcome["tokens"], outcome["adapter"]
            episode = _episode(task, outcome, specs)
            episodes.append(episode)
            if episode["reward"]:
                solved.add(task.text)
                known.append({"task": task.text, "said": outcome["said"]})
        unsolved = [task for task in unsolved if task.text not in solved]
    return {"episodes": episodes, "tokens": tokens, "adapter": used}


# --- internals ------------------------------------------------------------------------------------


async def _turn(
    os: OS,
    tried: Sequence[ToolTask],
    known: Sequence[JsonObject],
    *,
    held: Sequence[str] | None,
    seed: int,
    options: JsonObject,
) -> list[Any]:
    """Try all tasks once, each in a process of its own; what came of them, in order."""
    pids = [
        await os.spawn(
            tool_agent,
            task.text,
            worked=await _nearest(os, task.text, known),
            held_to=held,
            seed=seed,
            **options,
        )
        for task in tried
    ]
    done: list[Any] = await os.results(pids)
    await _tell(os, tried, pids, done)
    return done


async def _tell(
    os: OS, tried: Sequence[ToolTask], pids: Sequence[int], done: Sequence[JsonObject]
) -> None:
    """Say of each attempt how it turned out, where its traces are kept."""
    for task, pid, one in zip(tried, pids, done, strict=True):
        is_right = task.is_solved_by(one["tool"], one["result"])
        try:
            await os.outcome(pid, verdict="pass" if is_right else "fail", task=task.text)
        except SyscallError as problem:
            if problem.code != "not_found":
                raise
            return  # nobody consented: nothing is kept of any of them


def _held_to(turn: int, seed: int) -> tuple[str, ...]:
    """All tools in the first turn, then one after the other."""
    if turn == 0:
        return TOOL_NAMES
    order = random.Random(seed).sample(TOOL_NAMES, len(TOOL_NAMES))
    return (order[(turn - 1) % len(order)],)


def _episode(task: ToolTask, outcome: JsonObject, specs: Sequence[ToolSpec]) -> JsonObject:
    messages = [*conversation(task.text, specs), assistant(outcome["said"])]
    return {
        "task": task.text,
        "kind": task.kind,
        "said": outcome["said"],
        "reward": float(task.is_solved_by(outcome["tool"], outcome["result"])),
        "messages": [{"role": message.role, "content": message.text} for message in messages],
    }


async def _nearest(os: OS, task: str, known: Sequence[JsonObject]) -> list[JsonObject]:
    """The earlier successes nearest in meaning to a task, the nearest last."""
    if not known:
        return []
    newest = known[-_REMEMBERED:]
    order = await by_nearness(os, task, [str(one["task"]) for one in newest])
    return [newest[index] for index in reversed(order[:_SHOWN])]
