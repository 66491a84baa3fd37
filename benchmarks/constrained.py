"""A nested JSON Schema against free text: tokens per second, and whether every answer is valid.

Under one kernel, so many agents at a time on each side, with the same prompts. The constrained side
writes records of a nested schema to their end; the free side writes as many tokens as those records
have on the median, ends of text forbidden. Both are sampled with the same settings, and guessing
from the prompt is off, so that only the constraint differs. The sides alternate, round by round.

Tokens are tokens of the text that came out. Those that the schema forces are among them: a reader
waits for them like for any others, and the device computes them too, but several in one step and
without choosing. The steps that each side took for 100 tokens are given beside.

Valid is what an independent reader of the schema takes: pydantic, strictly, from the text alone.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import llmos
from benchmarks import servers
from benchmarks.form import Floor, main_with
from benchmarks.workload import endless, words
from llmos.config import ModelConfig
from llmos.syscalls.calls import Generate
from llmos.syscalls.content import user
from llmos.syscalls.options import JsonSchemaConstraint, Sampling

if TYPE_CHECKING:
    from llmos.kernel.kernel import Kernel

AGENTS = 8
ROUNDS = 5
RECORDS_PER_ROUND = 40
WINDOW = 512
MOST_TOKENS = 300

Short = Annotated[str, Field(max_length=16)]


class Part(BaseModel):
    """A level below the record."""

    model_config = ConfigDict(extra="forbid")

    name: Short
    state: Literal["new", "worn", "broken"]
    count: int = Field(ge=1, le=99)


class Place(BaseModel):
    model_config = ConfigDict(extra="forbid")

    city: Short
    is_indoors: bool


class Record(BaseModel):
    """What the agents write."""

    model_config = ConfigDict(extra="forbid")

    title: Short
    kind: Literal["tool", "vehicle", "building", "instrument"]
    place: Place
    parts: list[Part] = Field(min_length=1, max_length=2)


class Written(NamedTuple):
    text: str
    tokens: int


class Round(NamedTuple):
    """One round of one side."""

    answers: list[Written]
    seconds: float
    steps: int

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.answers)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def prompts(number: int, count: int) -> list[str]:
    """A round's prompts; they share a beginning, as one program's calls do."""
    draw = random.Random(number)
    return [f"Describe a thing with these words: {words(draw, 5)}." for _ in range(count)]


async def run(kernel: Kernel, texts: Sequence[str], **options: Any) -> Round:
    """All texts, so many at a time as there are sequences."""
    started, steps = time.perf_counter(), await _steps(kernel)
    made = await asyncio.gather(
        *(
            kernel.os.call(
                Generate(
                    messages=[user(text)],
                    **{"sampling": Sampling(temperature=0.8, seed=seed), **options},
                )
            )
            for seed, text in enumerate(texts)
        )
    )
    answers = [Written(one.text, one.usage.completion_tokens) for one in made]
    return Round(answers, time.perf_counter() - started, await _steps(kernel) - steps)


async def _steps(kernel: Kernel) -> int:
    """Steps that the device has taken."""
    return (await kernel.os.stat()).devices[0].steps


async def rounds(options: argparse.Namespace, home: Path) -> tuple[list[Round], list[Round]]:
    """The rounds of the constrained side and of the free one."""
    model = ModelConfig(
        source="smollm2",
        driver="llama_cpp",
        context_tokens=WINDOW,
        sequences=AGENTS,
        threads=servers.threads(),
        weights=options.weights,
    )
    schema = JsonSchemaConstraint(json_schema=Record.model_json_schema())
    bound: list[Round] = []
    free: list[Round] = []
    async with llmos.boot(home=home, models={"smollm2": model}, speculation=False) as kernel:
        warm = await run(kernel, prompts(-1, 2 * AGENTS), constraint=schema, max_tokens=MOST_TOKENS)
        length = round(statistics.median(one.tokens for one in warm.answers))
        for number in range(options.rounds):
            texts = prompts(number, options.records)
            for is_bound in (True, False) if number % 2 else (False, True):
                if is_bound:
                    made = await run(kernel, texts, constraint=schema, max_tokens=MOST_TOKENS)
                    bound.append(made)
                else:
                    sampling = Sampling(temperature=0.8, seed=number, logit_bias=endless())
                    few = texts[: max(AGENTS, len(texts) // 2)]
                    free.append(await run(kernel, few, sampling=sampling, max_tokens=length))
    return bound, free


def is_valid(text: str) -> bool:
    try:
        Record.model_validate_json(text, strict=True)
    except ValidationError:
        return False
    return True


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        bound, free = asyncio.run(rounds(options, Path(folder)))
    answers = [one for made in bound for one in made.answers]
    paired = [one.rate / other.rate for one, other in zip(bound, free, strict=True)]

    def steps(side: Sequence[Round]) -> float:
        return round(100 * sum(one.steps for one in side) / sum(one.tokens for one in side), 1)

    return {
        "ratio": round(statistics.median(paired), 2),
        "valid": sum(is_valid(one.text) for one in answers),
        "records": len(answers),
        "constrained_tokens_per_s": round(statistics.median(one.rate for one in bound), 1),
        "free_tokens_per_s": round(statistics.median(one.rate for one in free), 1),
        "constrained_steps_per_100_tokens": steps(bound),
        "free_steps_per_100_tokens": steps(free),
        "tokens_per_record": round(statistics.mean(one.tokens for one in answers), 1),
        "weights": options.weights,
        "agents": AGENTS,
        "threads": servers.threads(),
    }


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="tuned", help="number format, as in the configuration")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    parser.add_argument(
        "--records", type=int, default=RECORDS_PER_ROUND, metavar="N", help="records of a round"
    )
    return parser


if __name__ == "__main__":
    main_with(
        _options(),
        "constrained",
        measure,
        [Floor("ratio", ">=", 0.95), Floor("valid", "==", ROUNDS * RECORDS_PER_ROUND)],
    )
