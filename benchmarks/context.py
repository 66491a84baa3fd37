"""What a window of 2,048 tokens holds of a long dialogue, and what keeping it costs in prefill.

Dialogues of 200 turns with 50 planted facts (`dialogues.py`), each asked for once. `present` is the
share of questions whose answer stands in the window when they are asked; `present_left` the same of
those facts that had left the dialogue in the window by then, which only recall or a summary can
show. `prefill_tokens` are the tokens a turn that the device must compute: the rendered window less
what it begins with alike with the window before and its answer.

Sides: `truncation` drops the oldest messages until the rest fits, every turn anew; `sliding` keeps
the last 16 exchanges; `summary` is the kernel's own recursive summary, written by the real model;
`window` and `page_out` are the kernel's other policies; `default` is what a program gets that asks
for nothing. All through the kernel's own code, with the real tokenizer, template and embeddings.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import llmos
from benchmarks.dialogues import Turn, dialogue
from benchmarks.form import Floor, main_with
from llmos.config import ModelConfig
from llmos.context_picture import draw
from llmos.kernel.kernel import Kernel
from llmos.memory.context import Context
from llmos.memory.context_policy import POLICIES, ContextPolicy
from llmos.memory.context_state import ContextState
from llmos.memory.paging import Paging
from llmos.memory.segments import DROPPED_RESULT
from llmos.syscalls.content import assistant, system, user
from llmos.syscalls.results import ContextInfo

BUDGET, ANSWER, RECALL = 2048, 128, 256
EXCHANGES = 16
RULES = "You are a helpful assistant who remembers what the user has told you."
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Truncation:
    """The oldest messages go until the rest fits: what is computed plays no part."""

    recalls: ClassVar[bool] = False
    summarises: ClassVar[bool] = False

    def make_room(self, paging: Paging, room_tokens: int) -> None:
        for segment in list(paging.window.values())[:-1]:
            if paging.used_tokens <= room_tokens:
                return
            if not segment.is_fixed:
                del paging.window[segment.index]
                paging.changed[segment.index] = segment.leaving("dropped", "oldest message")
                paging.used_tokens = paging.exact_tokens()


@dataclass(frozen=True)
class Sliding(Truncation):
    """The last `EXCHANGES` exchanges stay; fewer if they do not fit."""

    def make_room(self, paging: Paging, room_tokens: int) -> None:
        old, _ = paging.exchanges()
        for exchange in old[: max(0, len(old) + 1 - EXCHANGES)]:
            paging.take_out(exchange, "dropped", "out of the last exchanges")
        paging.used_tokens = paging.exact_tokens()
        Truncation.make_room(self, paging, room_tokens)


SIDES: dict[str, ContextPolicy] = {
    "truncation": Truncation(),
    "sliding": Sliding(),
    "window": POLICIES["window"],
    "page_out": POLICIES["page_out"],
    "summary": POLICIES["summary"],
    "default": POLICIES["default"],
}


@dataclass
class Seen:
    """What one side did over one dialogue or several."""

    asked: list[bool] = field(default_factory=list[bool])
    left: list[bool] = field(default_factory=list[bool])  # of facts that had left the dialogue
    prefill: list[int] = field(default_factory=list[int])
    window: list[int] = field(default_factory=list[int])
    recalled: list[int] = field(default_factory=list[int])
    prepare_ms: list[float] = field(default_factory=list[float])
    model_tokens: int = 0
    info: ContextInfo | None = None  # of the newest dialogue

    def add(self, other: Seen) -> None:
        for name in ("asked", "left", "prefill", "window", "recalled", "prepare_ms"):
            getattr(self, name).extend(getattr(other, name))
        self.model_tokens += other.model_tokens
        self.info = other.info


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two prompts begin with alike."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))


async def run(kernel: Kernel, policy: ContextPolicy, turns: Sequence[Turn], number: int) -> Seen:
    """One side over one dialogue."""
    engine = await kernel.devices.engine(None)
    spent = kernel.init.account
    before = spent.tokens_in + spent.tokens_out
    context = Context(
        number,
        model=engine.name,
        budget_tokens=BUDGET,
        count=lambda messages: len(engine.render(messages)),
        state=ContextState(recall_tokens=RECALL),
        by=policy,
    )
    seen, held = Seen(), list[int]()
    process, contexts = kernel.init, kernel.contexts
    await contexts.extend(process, context, [system(RULES)])
    for turn in turns:
        started = time.perf_counter()
        await contexts.prepare(process, context, [user(turn.user)], reserve_tokens=ANSWER)
        seen.prepare_ms.append((time.perf_counter() - started) * 1000)
        window = context.window()
        prompt = engine.render(window)
        seen.prefill.append(len(prompt) - common(held, prompt))
        seen.window.append(len(prompt))
        segments = list(context.state.window.values())
        seen.recalled.append(sum(s.tokens for s in segments if s.own_kind == "recalled"))
        if turn.wanted is not None:
            is_present = any(turn.wanted in message.text for message in window)
            seen.asked.append(is_present)
            said = [s for s in segments if s.own_kind not in ("recalled", "summary")]
            if not any(turn.wanted in s.message.text for s in said):
                seen.left.append(is_present)
        held = engine.render([*window, assistant(turn.reply)])
        await contexts.extend(process, context, [assistant(turn.reply)])
    assert not any(DROPPED_RESULT in message.text for message in context.window())
    seen.info = context.info()
    seen.model_tokens = spent.tokens_in + spent.tokens_out - before
    return seen


async def all_sides(
    home: Path, sides: Sequence[str], seeds: Sequence[int], turns: int, facts: int
) -> dict[str, list[Seen]]:
    model = ModelConfig(source="smollm2", driver="llama_cpp", context_tokens=2304, sequences=2)
    seen: dict[str, list[Seen]] = {side: [] for side in sides}
    async with llmos.boot(home=home, models={"smollm2": model}) as kernel:
        for seed in seeds:
            told = dialogue(seed, turns, facts)
            for number, side in enumerate(sides):
                started = time.perf_counter()
                one = await run(kernel, SIDES[side], told, number)
                seen[side].append(one)
                print(
                    f"context: seed {seed}, {side}: {statistics.mean(one.asked):.2f} present, "
                    f"{statistics.mean(one.prefill):.0f} tokens a turn, "
                    f"{time.perf_counter() - started:.0f} s",
                    file=sys.stderr,
                )
    return seen


def figures(side: str, dialogues: Sequence[Seen]) -> dict[str, Any]:
    """One side's figures over all its dialogues."""
    every = Seen()
    for one in dialogues:
        every.add(one)
    shares = [statistics.mean(one.asked) for one in dialogues]
    return {
        f"{side}_present": round(statistics.mean(every.asked), 3),
        f"{side}_present_worst": round(min(shares), 3),
        f"{side}_present_left": round(statistics.mean(every.left), 3) if every.left else None,
        f"{side}_prefill_tokens": round(statistics.mean(every.prefill), 1),
        f"{side}_window_tokens": round(statistics.mean(every.window)),
        f"{side}_recalled_tokens": round(statistics.mean(every.recalled)),
        f"{side}_model_tokens": every.model_tokens,
        f"{side}_prepare_ms": round(statistics.median(every.prepare_ms), 1),
    }


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    turns, facts = (60, 15) if chosen.quick else (200, 50)
    sides = chosen.sides or list(SIDES)
    with tempfile.TemporaryDirectory() as folder:
        seen = asyncio.run(all_sides(Path(folder), sides, chosen.seeds, turns, facts))
    if chosen.picture is not None:
        infos = [one.info for side in sides for one in seen[side][-1:] if one.info is not None]
        chosen.picture.write_text(draw(infos), encoding="utf-8")
    found: dict[str, Any] = {"seeds": len(chosen.seeds), "turns": turns, "facts": facts}
    for side in sides:
        found |= figures(side, seen[side])
    ours, naive = found.get("default_prefill_tokens"), found.get("truncation_prefill_tokens")
    found["prefill_ratio"] = round(ours / naive, 3) if ours and naive else None
    found.setdefault("default_present", None)
    return found


FLOORS = (Floor("default_present", ">=", 0.9), Floor("prefill_ratio", "<=", 0.5))


def options() -> argparse.ArgumentParser:
    """Which sides, seeds and how many turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="60 turns instead of 200")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES))
    parser.add_argument("--picture", type=Path, help="draw the windows over time into a file")
    return parser


if __name__ == "__main__":
    main_with(options(), "context", measure, FLOORS)
