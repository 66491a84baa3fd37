"""The commands `classify` and `tag`: texts of the command line or of standard input, labelled."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from llmos import exits
from llmos.booting import boot
from llmos.exits import UsageError
from llmos.logs import log_to_file
from llmos.tables import console, text_table

if TYPE_CHECKING:
    from rich.table import Table

    from llmos.agents.handle import OS
    from llmos.config import Config
    from llmos.syscalls.learning_results import Classified, Tagged

R = TypeVar("R")


def classify_texts(
    config: Config, model: str, texts: Sequence[str], *, task: str | None, top: int, as_json: bool
) -> int:
    """Print the most likely labels of each text."""
    texts = _given(texts)

    async def ask(os: OS) -> Classified:
        return await os.classify(texts, model, task=task, top_k=top)

    found = _asked(config, ask)
    if as_json:
        print(json.dumps(found.model_dump(mode="json"), ensure_ascii=False))
        return exits.OK
    console().print(label_table(texts, found))
    return exits.OK


def tag_texts(
    config: Config, model: str, texts: Sequence[str], *, task: str | None, as_json: bool
) -> int:
    """Print the entities of each text, and where they are."""
    texts = _given(texts)

    async def ask(os: OS) -> Tagged:
        return await os.tag(texts, model, task=task)

    found = _asked(config, ask)
    if as_json:
        print(json.dumps(found.model_dump(mode="json"), ensure_ascii=False))
        return exits.OK
    console().print(entity_table(found))
    return exits.OK


def label_table(texts: Sequence[str], found: Classified) -> Table:
    """The labels of each text, the most likely first."""
    rows = [
        (one.label, f"{one.probability:.3f}", "" if place else text)
        for text, labels in zip(texts, found.labels, strict=True)
        for place, one in enumerate(labels)
    ]
    return text_table(("label", "probability", "text"), rows)


def entity_table(found: Tagged) -> Table:
    """The entities of all texts, and where they are."""
    rows = [
        (
            entity.text,
            entity.label,
            str(number),
            f"{entity.start}-{entity.end}",
            f"{entity.score:.3f}",
        )
        for number, one in enumerate(found.texts, start=1)
        for entity in one.entities
    ]
    return text_table(("entity", "label", "text", "characters", "score"), rows)


def _asked(config: Config, ask: Callable[[OS], Awaitable[R]]) -> R:
    async def run() -> R:
        async with boot(config) as kernel:
            return await ask(kernel.os)

    log_to_file(config.home)
    return asyncio.run(run())


def _given(texts: Sequence[str]) -> Sequence[str]:
    """The texts, or the lines of standard input that are not blank."""
    if texts:
        return texts
    lines = [] if sys.stdin.isatty() else [line.strip() for line in sys.stdin]
    found = [line for line in lines if line]
    if not found:
        raise UsageError("give texts, or lines of text on standard input")
    return found
