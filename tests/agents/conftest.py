"""A kernel for agent programs: a scripted language model, and embeddings that count words."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmos.agents.handle import OS
from llmos.agents.programs import PROGRAMS
from llmos.agents.tools import TOOLS
from llmos.drivers.contract import Allocation, EmbeddingInfo
from llmos.drivers.scripted import Script, Scripted
from llmos.kernel.clock import Clock
from llmos.kernel.kernel import Kernel
from llmos.kernel.sandbox import PYTHON_TOOL
from llmos.kernel.settings import EmbeddingSetting, ModelSetting, Settings

DIMENSIONS = 256

BootAgents = Callable[..., AbstractAsyncContextManager[Kernel]]


class WordCounts:
    """An embedding whose dimensions are hashed words: texts with common words are near."""

    @property
    def info(self) -> EmbeddingInfo:
        return EmbeddingInfo("words", "cpu", DIMENSIONS, max_tokens=10_000, parameters=0)

    def count(self, text: str) -> int:
        return len(text.split())

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [_vector(text) for text in texts]

    def allocations(self) -> list[Allocation]:
        return []

    def close(self) -> None:
        pass


def _vector(text: str) -> list[float]:
    vector = [1e-3] * DIMENSIONS
    for word in re.findall(r"\w+", text.lower()):
        vector[hashlib.sha256(word.encode()).digest()[0]] += 1.0
    norm = math.sqrt(sum(x * x for x in vector))
    return [x / norm for x in vector]


@pytest.fixture
def boot_agents(tmp_path: Path) -> BootAgents:
    """`async with boot_agents(script) as kernel`: all shipped programs and tools."""

    @asynccontextmanager
    async def boot(
        script: Script | None = None,
        *,
        clock: Clock | None = None,
        with_embedding: bool = True,
    ) -> AsyncIterator[Kernel]:
        model = ModelSetting(
            name="scripted",
            base="scripted",
            driver="scripted",
            open=lambda: Scripted(script=script),
        )
        embedding = EmbeddingSetting("words", DIMENSIONS, WordCounts) if with_embedding else None
        kernel = Kernel(
            Settings(
                home=tmp_path / "home",
                models={"scripted": model},
                default_model="scripted",
                embedding=embedding,
            ),
            bind=OS,
            programs=PROGRAMS,
            clock=clock,
        )
        for tool in (*TOOLS, PYTHON_TOOL):
            kernel.tools.add(tool)
        try:
            yield kernel
        finally:
            await kernel.stop()

    return boot


@pytest.fixture
def run_program(boot_agents: BootAgents) -> Callable[..., Any]:
    """`run_program(name, *args, script=..., stdin=..., **kwargs)`: its value and its output.

    Raises the program's error when it fails.
    """

    async def run(
        program: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        script: Script | None,
        stdin: bytes | None,
        options: dict[str, Any],
    ) -> tuple[Any, str]:
        async with boot_agents(script, **options) as kernel:
            is_interactive = stdin is not None
            pid = await kernel.os.spawn(program, *args, is_interactive=is_interactive, **kwargs)
            output = asyncio.create_task(_output(kernel, pid))
            if stdin is not None:
                await kernel.feed(pid, stdin)
                kernel.close_input(pid)
            value = await kernel.os.result(pid)
            return value, await output

    def start(
        program: Any,
        *args: Any,
        script: Script | None = None,
        stdin: bytes | None = None,
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, str]:
        return asyncio.run(run(program, args, kwargs, script, stdin, options or {}))

    return start


async def _output(kernel: Kernel, pid: int) -> str:
    return b"".join([data async for data in kernel.output(pid)]).decode()
