"""Which of two answers is better, by a model: each pair is asked about twice, in both orders.

A model that prefers what stands first, or last, contradicts itself when the two change places: such
a pair is a tie. So position bias costs decisions and moves no win rate.

Source: Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", NeurIPS 2023.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from llmos.agents.handle import OS
from llmos.agents.prompts import prompt
from llmos.syscalls.errors import SyscallError
from llmos.syscalls.options import ChoiceConstraint
from llmos.syscalls.values import JsonObject, Value

FIRST, SECOND = "A", "B"  # what the judge says
_AT_ONCE = 16

Winner = Literal["first", "second", "tie"]


class Pair(Value):
    """A question with two answers to it."""

    question: str
    first: str
    second: str


class Verdict(Value):
    """Who won a pair; `is_consistent` when both orders gave the same answer the win."""

    winner: Winner
    is_consistent: bool


class Judged(Value):
    """All verdicts and what they come to.

    `win_rate` is the share of pairs that the first answer won, a tie being half a win.
    `consistency` is the share of pairs decided alike in both orders, and `first_place` the share of
    all judgements for the answer that stood first: 0.5 without position bias.
    """

    wins: int
    losses: int
    ties: int
    win_rate: float
    consistency: float
    first_place: float
    verdicts: tuple[Verdict, ...]


async def judge(os: OS, pairs: Sequence[JsonObject], *, model: str | None = None) -> JsonObject:
    """Compare answers pair by pair; a pair is `{"question", "first", "second"}`.

    Returns a `Judged`. Raises: SyscallError("invalid") without pairs.
    """
    judged = await compared(os, [Pair.model_validate(pair) for pair in pairs], model=model)
    await os.print(
        f"won {judged.wins}, lost {judged.losses}, tied {judged.ties}: win rate "
        f"{judged.win_rate:.3f}, consistent {judged.consistency:.0%}"
    )
    return judged.model_dump()


async def compared(os: OS, pairs: Sequence[Pair], *, model: str | None = None) -> Judged:
    """Judge pairs, each in both orders. Raises: SyscallError("invalid") without pairs."""
    if not pairs:
        raise SyscallError("invalid", "pairs: there are none to judge", field="pairs")
    turns = asyncio.Semaphore(_AT_ONCE)

    async def is_first_better(pair: Pair) -> bool:
        async with turns:
            said = await os.generate(
                prompt("judge_pair").messages(
                    question=pair.question, first=pair.first, second=pair.second
                ),
                model=model,
                constraint=ChoiceConstraint(choices=(FIRST, SECOND)),
                max_tokens=4,
            )
        return said.text == FIRST

    swapped = [Pair(question=p.question, first=p.second, second=p.first) for p in pairs]
    said = await asyncio.gather(*(is_first_better(pair) for pair in (*pairs, *swapped)))
    half = len(pairs)
    return summed_up([verdict(said[n], not said[half + n]) for n in range(half)], sum(said))


def verdict(is_better: bool, is_better_swapped: bool) -> Verdict:
    """What two judgements of a pair come to; each says whether the first answer is better."""
    if is_better != is_better_swapped:
        return Verdict(winner="tie", is_consistent=False)
    return Verdict(winner="first" if is_better else "second", is_consistent=True)


def summed_up(verdicts: Sequence[Verdict], first_places: int) -> Judged:
    """The figures; `first_places` is how often the answer that stood first was chosen."""
    count = len(verdicts)
    wins, losses, ties = (
        sum(one.winner == winner for one in verdicts) for winner in ("first", "second", "tie")
    )
    return Judged(
        wins=wins,
        losses=losses,
        ties=ties,
        win_rate=(wins + ties / 2) / count,
        consistency=sum(one.is_consistent for one in verdicts) / count,
        first_place=first_places / (2 * count),
        verdicts=tuple(verdicts),
    )
