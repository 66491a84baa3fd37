"""Tree of thought: grow several next steps, judge each, and go on from the best.

A branch is a fork of its parent's context, and so is its judge: a tree of any size computes every
step once, and what is judged is not read again. Breadth-first search with a beam (Yao et al. 2023).
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from llmos.agents.forms import sentence
from llmos.agents.handle import OS
from llmos.agents.prompts import prompt
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import ChoiceConstraint, RegexConstraint, Sampling
from llmos.syscalls.values import JsonObject

_SCORES = ("1", "2", "3", "4", "5")
_STEP = sentence(least=10, most=140)
_STEP_TOKENS = 50
_MOST_BRANCHES = 64


class Branch(NamedTuple):
    """A way through the tree: its context, its steps, and the last step's score of 1 to 5."""

    context: int
    steps: tuple[str, ...]
    score: int


async def tree_of_thought(
    os: OS,
    question: str,
    *,
    breadth: int = 3,
    depth: int = 2,
    keep: int = 1,
    model: str | None = None,
) -> JsonObject:
    """Think about a question in `depth` steps, `breadth` ways each, going on with `keep` of them.

    Returns `{"question", "answer", "steps", "score", "levels"}`; a level lists the branches that
    were grown in it as `{"step", "score"}`, best first.
    Raises: SyscallError("invalid") for sizes that are too small or too large.
    """
    _check(breadth, depth, keep)
    root = await os.context_open(prompt("thought").messages(question=question), model=model)
    beam = [Branch(root, (), 0)]
    levels: list[list[JsonObject]] = []
    for level in range(depth):
        grown = await asyncio.gather(
            *(_grow(os, branch, level, seed, model) for branch in beam for seed in range(breadth))
        )
        ranked = sorted(grown, key=lambda branch: branch.score, reverse=True)
        for branch in [*beam, *ranked[keep:]]:
            await os.context_close(branch.context)
        beam = ranked[:keep]
        levels.append([{"step": one.steps[-1], "score": one.score} for one in ranked])
        await os.print(f"step {level + 1}: {beam[0].steps[-1]} ({beam[0].score}/5)")
    best = beam[0]
    answer = await os.generate(
        [prompt("thought_answer").turn()],
        context=best.context,
        model=model,
        constraint=RegexConstraint(pattern=_STEP),
        max_tokens=_STEP_TOKENS,
    )
    for branch in beam:
        await os.context_close(branch.context)
    await os.print(f"answer: {answer.text}")
    return {
        "question": question,
        "answer": answer.text,
        "steps": list(best.steps),
        "score": best.score,
        "levels": levels,
    }


async def _grow(os: OS, parent: Branch, level: int, seed: int, model: str | None) -> Branch:
    """One more step on a fork of the parent, and its score."""
    context = await os.context_fork(parent.context)
    thought = await os.generate(
        [prompt("thought_step").turn(number=level + 1)],
        context=context,
        model=model,
        sampling=Sampling(temperature=0.8, seed=seed),
        constraint=RegexConstraint(pattern=_STEP),
        max_tokens=_STEP_TOKENS,
    )
    judge = await os.context_fork(context)
    verdict = await os.generate(
        [prompt("thought_score").turn()],
        context=judge,
        model=model,
        constraint=ChoiceConstraint(choices=_SCORES),
        max_tokens=4,
    )
    await os.context_close(judge)
    score = int(verdict.text) if verdict.text in _SCORES else 0
    return Branch(context, (*parent.steps, thought.text.strip()), score)


def _check(breadth: int, depth: int, keep: int) -> None:
    for name, value in (("breadth", breadth), ("depth", depth), ("keep", keep)):
        if value < 1:
            raise SyscallError("invalid", f"{name}: give at least 1", field=name)
    if breadth * keep > _MOST_BRANCHES:
        raise SyscallError(
            "invalid",
            f"breadth: {breadth} ways from each of {keep} branches is more than {_MOST_BRANCHES}",
            field="breadth",
        )
