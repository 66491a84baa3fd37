"""Which worked examples are shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmos.agents.handle import OS
from llmos.agents.prompts import Example
from llmos.agents.shots import by_nearness, nearest_examples

TEXTS = ["the cat sat", "a dog ran far", "the cat ran"]


async def nearest(os: OS, query: str) -> list[int]:
    return await by_nearness(os, query, TEXTS)


async def shown(os: OS, task: str, k: int) -> list[str]:
    known = [Example(task=text, tool="t", arguments={}, result="r", answer="a") for text in TEXTS]
    return [example.task for example in await nearest_examples(os, task, known, k=k)]


def test_texts_come_in_order_of_meaning(run_program: Callable[..., Any]) -> None:
    assert run_program(nearest, "the cat sat down")[0] == [0, 2, 1]


def test_the_nearest_example_comes_last(run_program: Callable[..., Any]) -> None:
    assert run_program(shown, "the cat sat down", 2)[0] == ["the cat ran", "the cat sat"]


def test_without_embeddings_the_order_stays(run_program: Callable[..., Any]) -> None:
    options = {"with_embedding": False}
    assert run_program(nearest, "dog", options=options)[0] == [0, 1, 2]
    assert run_program(shown, "dog", 2, options=options)[0] == ["a dog ran far", "the cat sat"]
